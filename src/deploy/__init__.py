"""How a trained network leaves the framework.

fold.py      the folded file (safetensors), compared with the training form before it is written
formats.py   the table of export formats, and the plain state dict (.pt)
context.py   what every writer and reader of a format shares
rewrite.py   a folded network in operators that other runtimes have, and run fast
program.py   torch.export programs, and how one is read without running what it holds
onnx_form.py, ncnn_form.py   the formats of other runtimes
web_form.py  a page that runs the network in the browser; web/ has its parts, npm.py fetches onnxruntime-web
isolated.py  a reader in a process of its own
measure.py   a file compared with torch: largest difference, PSNR, latency
report.py    export.json: what was written, and from what
folder.py    all files of one checkpoint: written, and checked again
"""
