"""Damaged and forged files of weights."""

import argparse
import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path

import torch
from fuzz.changes import VALUES, damaged


class Runs:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return random.choice((os.system, os.popen)), (f"touch {self.trace}",)


def bases(folder: Path) -> dict[str, bytes]:
    """Whole files of every form, and what is in them."""
    import safetensors.torch

    from deploy.fold import write_folded
    from model.checkpoint import pack
    from model.edsr import EDSR
    from model.krgn import KRGN
    from model.rcan import RCAN
    from runtime.files import save_tensors

    networks = {"KRGN": KRGN(scale=2, n_feats=8, n_resgroups=1), "EDSR": EDSR(scale=2, n_feats=8, n_resblocks=1)}
    networks["RCAN"] = RCAN(scale=2, n_feats=8, n_resgroups=1, n_resblocks=1, reduction=2)
    found = {}
    for name, network in networks.items():
        save_tensors(folder / "x.pt", pack(network, name, epoch=3))
        found[f"{name} pack"] = (folder / "x.pt").read_bytes()
        write_folded(folder / "x.pt", folder / "x.safetensors")
        found[f"{name} folded"] = (folder / "x.safetensors").read_bytes()
        state = network.state_dict()
        found[f"{name} bare"] = safetensors.torch.save(state)
        found[f"{name} legacy"] = written({"params": state, "iter": 7}, legacy=True)
        (folder / "x.pt").unlink()
        (folder / "x.safetensors").unlink()
    return found


def written(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def odd(weight: torch.Tensor, chance: random.Random) -> object:
    """Something in the place of a weight."""
    return chance.choice(
        [
            lambda: weight.to_sparse(),
            lambda: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
            lambda: weight.to("meta"),
            lambda: weight.to(torch.complex64),
            lambda: torch.zeros(1).expand(10**9, 64, 3, 3),
            lambda: torch.empty(0, 3),
            lambda: torch.full_like(weight, chance.choice([float("nan"), float("inf")])),
            lambda: weight.to(chance.choice([torch.int64, torch.bool, torch.uint8])),
            lambda: weight.to(chance.choice([torch.float16, torch.float64, torch.bfloat16])),
            lambda: weight.flatten(),
            lambda: torch.rand(()),
            lambda: chance.choice(VALUES),
            lambda: {"a": weight},
        ]
    )()


def forged(content: bytes, chance: random.Random, trace: Path) -> bytes:
    """A torch file whose content is changed in one place or wrapped, or that would run code."""
    whole = torch.load(io.BytesIO(content), weights_only=True)
    state = whole["model" if "model" in whole else "params"]
    name = chance.choice(list(state))
    kind = chance.randrange(8)
    if kind == 0:
        state[name] = odd(state[name], chance)
    elif kind == 1:
        whole.setdefault("facts", {})[chance.choice(["dilation", "act", "model", "scale", "x\n"])] = chance.choice(
            VALUES
        )
    elif kind == 2:
        state[chance.choice(["", "a\nb", "body.999999999.x", "n_averaged", "\x1b[2J", name + "x"])] = state.pop(name)
    elif kind == 3:
        whole = {chance.choice(["state_dict", "net", "params_ema", "x", "netD", "optimizer"]): whole, "other": state}
    elif kind == 4:
        prefix = chance.choice(["module.", "model.net.", "G.", "generator.", "discriminator.", "a.b.c.d.e."])
        whole = {prefix + key: value for key, value in state.items()}
    elif kind == 5:
        whole = [whole, (whole,), state[name], None, 3, {1: whole}, {"a": {}}, argparse.Namespace(a=whole)][
            chance.randrange(8)
        ]
    else:
        chance.choice([whole, state])[chance.choice([name, "more", "state_dict"])] = Runs(trace)
    if kind == 7 and chance.random() < 0.5:
        return pickle.dumps(whole, protocol=chance.randrange(5))
    return written(whole, legacy=chance.random() < 0.4)


def repacked(content: bytes, chance: random.Random) -> bytes:
    """A zip file with its members compressed, twice there, missing, too large, or of other contents."""
    target, kind = io.BytesIO(), chance.randrange(4)
    compression = zipfile.ZIP_DEFLATED if kind == 0 else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w", compression) as archive:
        names = source.namelist()
        chosen = chance.choice(names)
        for name in names:
            part = source.read(name)
            if name == chosen and kind == 0:
                part = bytes(2**26)
            if name == chosen and kind == 1:
                part = damaged(part or b"x", chance)
            if name != chosen or kind != 2:
                archive.writestr(name, part)
    return target.getvalue()


def reheaded(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header is changed in one place."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    entry = header[chance.choice(list(header))]
    entry[chance.choice(list(entry) or ["x"])] = chance.choice([*VALUES, [10**12, 2], "I64", "{}", "[" * 9999])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def special(path: Path, chance: random.Random) -> None:
    kind = chance.randrange(5)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(chance.choice(["/dev/zero", "/dev/full", "/dev/tty", "/proc/self/mem", "none"]))
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.write_bytes(b"")
    else:
        with open(path, "wb") as file:
            file.truncate(2**40)


def make(folder: Path, seed: int, count: int) -> None:
    """Writes the inputs of a seed."""
    chance, whole = random.Random(seed), bases(folder)
    torch_files = [content for content in whole.values() if content[8:9] != b"{"]
    zips = [content for content in torch_files if content[:2] == b"PK"]
    headed = [content for content in whole.values() if content[8:9] == b"{"]
    for number in range(count):
        path = folder / "inputs" / f"{number:06}{chance.choice(['.pt', '.pth', '.safetensors', '.ckpt', ''])}"
        kind = chance.random()
        if kind < 0.02:
            special(path, chance)
        elif kind < 0.45:
            path.write_bytes(damaged(chance.choice(list(whole.values())), chance))
        elif kind < 0.75:
            path.write_bytes(forged(chance.choice(torch_files), chance, folder / "trace/it_ran"))
        elif kind < 0.87:
            path.write_bytes(repacked(chance.choice(zips), chance))
        else:
            path.write_bytes(reheaded(chance.choice(headed), chance))


def take(path: Path) -> None:
    """What main, export and the other programs do with a file of weights: a network and its output."""
    from model.checkpoint import facts_of, rebuild, unpack
    from model.weights import load_tensors
    from option import follow_file, parse_args

    checkpoint = unpack(load_tensors(path), str(path))
    follow_file(parse_args(["--pre_train", "x", "--cpu"]), facts_of(checkpoint))
    network = rebuild(checkpoint).eval()
    with torch.no_grad():
        network(torch.rand(1, network.hyperparameters["n_colors"], 8, 8))
