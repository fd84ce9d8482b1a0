// The page: a picture is chosen, the worker computes, the result is shown beside bicubic.
//
// To the worker:   {kind: "start", engine, threads, facts}   {kind: "run", pixels, width, height, tile}
// From the worker: {kind: "ready"}  {kind: "bicubic" | "done", pixels, width, height, …}
//                  {kind: "progress", done, total, seconds}  {kind: "failed", during, text}

const $ = (id) => document.getElementById(id);
const facts = JSON.parse($("facts").textContent);

const LARGEST_FILE = 100e6; // bytes
const LONGEST_SIDE = 16384; // pixels: no browser's canvas is longer
const LARGEST_AREA = 64e6; // output pixels: bicubic and result take 4 bytes each for a pixel, several times
const PHONE = matchMedia("(pointer: coarse)").matches; // its browser gives a page less memory
const WHOLE = (PHONE ? 192 : 320) ** 2; // LR pixels that are computed whole without being asked; KRGN takes 9 kB for each
const TILES = PHONE ? [128, 64] : [256, 128]; // LR pixels: the sides of larger pictures' tiles, and where memory is used up
const MIDDLE = 256; // LR pixels: the side of "its middle"
const NARROWEST = 256; // CSS pixels: room for the names of both pictures

let picture = null; // {name, pixels, width, height} that is computed or shown
let bitmap = null; // the picture that was too large, for "Use its middle"
let worker = null; // {engine, thread: Worker, ready: Promise}
let running = null; // {tile, begun} of the run in progress
let opened = 0; // counts what was begun, so that an older one's late answer is dropped
let caption = ""; // what the status says of the result
let webgpu = false;

// --- engines ---

const isolated = globalThis.crossOriginIsolated === true;
const threads = isolated ? Math.min(8, navigator.hardwareConcurrency || 1) : 1;

async function listEngines() {
  try {
    webgpu = Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    webgpu = false;
  }
  if (webgpu) $("engine").add(new Option("GPU (WebGPU)", "webgpu"));
  $("engine").add(new Option(`processor, ${plural(threads, "thread")}`, "wasm"));
  noteEngine();
}

const listed = listEngines();

function noteEngine() {
  const notes = [];
  if (!webgpu) notes.push("This browser offers no WebGPU here, so the processor computes.");
  if ($("engine").value === "wasm" && !isolated) {
    notes.push("It uses one thread, because this server does not send the headers for cross-origin isolation. "
      + "python serve.py, in the page's folder, sends them.");
  }
  $("engine-note").textContent = notes.join(" ");
}

// The worker for the chosen engine, started where there is none; rejects where the engine does not start.
function startWorker() {
  const engine = $("engine").value;
  if (worker?.engine === engine) return worker.ready;
  stopWorker();
  // A worker made of a blob is bound by the page's security policy; one from the server would be by none.
  const code = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
  const thread = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })), { type: "module" });
  const ready = new Promise((resolve, reject) => {
    thread.onmessage = ({ data }) => {
      if (data.kind === "ready") resolve(thread);
      else if (data.kind === "failed" && data.during === "start") reject(new Error(data.text));
      else receive(data);
    };
    thread.onerror = (event) => {
      event.preventDefault();
      reject(new Error(event.message || "the worker did not start"));
      if (running) receive({ kind: "failed", during: "run", text: event.message || "the worker ended" });
    };
  });
  thread.postMessage({ kind: "start", engine, threads, facts });
  worker = { engine, thread, ready };
  return ready;
}

function stopWorker() {
  worker?.thread.terminate();
  worker = null;
  running = null;
}

// --- opening a picture ---

async function open(file) {
  abandon(); // or an older picture's result might come while this one is read
  const number = opened;
  complain("");
  const name = file.name || "picture";
  if (file.size > LARGEST_FILE) {
    return complain(`${name} has ${Math.round(file.size / 1e6)} MB, at most ${LARGEST_FILE / 1e6} MB are read here. `
      + "Give a smaller file.");
  }
  say(`Reading ${name} …`);
  await listed; // the engines
  let decoded;
  try {
    decoded = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    if (number === opened) {
      complain(`${name} cannot be read: it is damaged, or no picture of a kind that this browser knows. `
        + "JPEG, PNG, WebP, AVIF and GIF are.");
    }
    return;
  }
  if (number !== opened) return decoded.close();
  const { width, height } = decoded, { scale } = facts;
  if (width * height * scale * scale > LARGEST_AREA || Math.max(width, height) * scale > LONGEST_SIDE) {
    bitmap = { decoded, name };
    complain(`${name} has ${width} × ${height} pixels, and ${width * scale} × ${height * scale} after enlarging. This page makes `
      + `at most ${LARGEST_AREA / 1e6} megapixels, and ${LONGEST_SIDE} pixels on a side. Reduce or crop the picture, use `
      + `${MIDDLE} × ${MIDDLE} pixels of its middle, or run the project's upscale.py.`, true);
    return;
  }
  await compute(name, decoded, 0, 0, width, height);
}

// The part of a decoded picture, which is then released, computed and shown.
async function compute(name, decoded, left, top, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(decoded, -left, -top);
  decoded.close(); // 4 bytes a pixel, which a browser frees late
  picture = { name, width, height, pixels: context.getImageData(0, 0, width, height).data };
  const chosen = $("tile").value;
  await run(chosen === "auto" ? (width * height <= WHOLE ? 0 : TILES[0]) : Number(chosen));
}

// --- computing ---

async function run(tile) {
  const number = opened;
  if (running) stopWorker(); // a run cannot be stopped otherwise
  $("result").hidden = true;
  $("work").hidden = false;
  $("progress").removeAttribute("value");
  say(worker?.engine === $("engine").value ? "Computing …"
    : `Loading the network (${(facts.bytes / 1e6).toFixed(1)} MB) and what runs it …`);
  let thread;
  try {
    thread = await startWorker();
  } catch (error) {
    stopWorker();
    if (number !== opened) return;
    if ($("engine").value === "webgpu") return giveUpWebGPU(error.message, tile);
    return end(`The network cannot be loaded (${error.message}). Load the page again.`);
  }
  if (number !== opened) return;
  running = { tile };
  const { pixels, width, height } = picture;
  thread.postMessage({ kind: "run", pixels, width, height, tile });
}

function receive(data) {
  if (!running) return;
  if (data.kind === "bicubic") {
    draw($("bicubic"), data);
  } else if (data.kind === "progress") {
    progress(data);
  } else if (data.kind === "failed") {
    fail(data.text);
  } else if (data.kind === "done") {
    finish(data);
  }
}

function progress({ done, total, seconds }) {
  if (total === 1) {
    return say(`Computing ${picture.width} × ${picture.height} pixels at once …`);
  }
  if (done) Object.assign($("progress"), { max: total, value: done }); // before, an empty bar would look like a halt
  const left = done ? `, ${time((seconds / done) * (total - done))} left` : "";
  say(`Computing tile ${done + 1} of ${total}${left} …`);
}

// Out of memory or a lost device: smaller tiles, then the processor, then an explanation.
function fail(text) {
  const { tile } = running;
  stopWorker();
  const smaller = TILES.find((side) => side < (tile || Math.max(picture.width, picture.height)));
  if ($("tile").value === "auto" && smaller) return run(smaller);
  if ($("engine").value === "webgpu") return giveUpWebGPU(text, tile);
  end(`The picture could not be computed (${text}). Choose smaller tiles, or give a smaller picture.`);
}

function giveUpWebGPU(text, tile) {
  $("engine").value = "wasm";
  noteEngine();
  $("engine-note").textContent = `WebGPU failed (${text}); the processor computes. ${$("engine-note").textContent}`;
  run(tile);
}

async function finish(data) {
  running = null;
  const number = opened;
  const whole = draw($("network"), data);
  if (!whole) return end("This browser cannot draw a picture of this size. Give a smaller picture.");
  const blob = await new Promise((done) => $("network").toBlob(done, "image/png"));
  if (number !== opened) return;
  if (!blob) return end("This browser cannot write a PNG of this size. Give a smaller picture.");
  URL.revokeObjectURL($("download").href);
  $("download").href = URL.createObjectURL(blob);
  $("download").download = `${picture.name.replace(/\.[^.]*$/, "")}_x${facts.scale}.png`;
  $("work").hidden = true;
  $("result").hidden = false;
  const megapixels = (data.width * data.height) / 1e6, engine = worker.engine === "webgpu" ? "WebGPU" : plural(threads, "thread");
  caption = `${picture.width} × ${picture.height} to ${data.width} × ${data.height} pixels in ${time(data.seconds)}: `
    + `${(megapixels / data.seconds).toPrecision(2)} megapixels a second (${engine}).`;
  say(caption);
  $("exactness").textContent = exactness(data.tiles);
  layOut();
}

function exactness(tiles) {
  if (tiles === 1) return "Computed whole: what PyTorch computes, to one gray level of 255.";
  if (facts.exactTiles) return `Computed in ${tiles} tiles that overlap: the same as the whole picture.`;
  return `Computed in ${tiles} tiles that overlap. The network weights its channels by averages over all of the picture, and `
    + "a tile knows only its own, so the result differs a little from that of the whole picture.";
}

function end(problem) {
  $("work").hidden = true;
  say("");
  complain(problem);
}

// --- showing ---

// Draws pixels on a canvas; false where the browser has no canvas of this size.
function draw(canvas, { pixels, width, height }) {
  Object.assign(canvas, { width, height });
  try {
    canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
    return true;
  } catch {
    return false;
  }
}

// Fits the pictures into the page, or shows each pixel as one of the screen's.
function layOut() {
  const { width, height } = $("network");
  if (!width || $("result").hidden) return;
  const actual = $("actual").checked;
  $("stage").classList.toggle("actual", actual);
  const room = $("result").clientWidth;
  const shown = actual ? width / devicePixelRatio : Math.min(room, (0.8 * innerHeight * width) / height);
  const stage = Math.min(Math.max(shown, NARROWEST), room); // a narrow picture stands in its middle
  for (const part of ["stage", "slider"]) $(part).style.width = `${stage}px`;
  $("pictures").style.width = `${shown}px`;
  $("pictures").style.height = `${(shown * height) / width}px`;
  divide();
}

// Cuts the pictures off at the divider, which keeps its place while they scroll. Bicubic must not show through the result.
function divide() {
  const scroller = $("scroller").getBoundingClientRect(), box = $("pictures").getBoundingClientRect();
  const from = Math.max(scroller.left, box.left), to = Math.min(scroller.right, box.right);
  const x = from + ((to - from) * $("slider").value) / 100;
  $("bicubic").style.clipPath = `inset(0 ${box.right - x}px 0 0)`;
  $("network").style.clipPath = `inset(0 0 0 ${x - box.left}px)`;
  $("divider").style.left = `${x - scroller.left}px`;
}

function drag(event) {
  if (event.pointerType !== "mouse" && $("actual").checked) return; // a finger scrolls
  if (event.type === "pointerdown") $("scroller").setPointerCapture(event.pointerId);
  else if (!event.buttons) return;
  const scroller = $("scroller").getBoundingClientRect(), box = $("pictures").getBoundingClientRect();
  const from = Math.max(scroller.left, box.left), to = Math.min(scroller.right, box.right);
  $("slider").value = (100 * (event.clientX - from)) / (to - from);
  divide();
}

function say(text) {
  $("status").textContent = text;
}

function complain(text, offer = false) {
  if (text) {
    abandon();
    say($("result").hidden ? "" : caption); // an older picture's result stays, with what was said of it
  }
  $("problem").textContent = text;
  $("problem").hidden = !text;
  $("offer").hidden = !offer;
  if (!offer) {
    bitmap?.decoded.close();
    bitmap = null;
  }
}

// Ends what is under way; its late answers are dropped.
function abandon() {
  opened++;
  if (running) stopWorker();
  $("work").hidden = true;
}

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

function time(seconds) {
  const whole = Math.round(seconds);
  return whole < 60 ? `${seconds.toPrecision(2)} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

// --- events ---

$("choose").onclick = () => $("file").click();
$("file").onchange = () => {
  const [file] = $("file").files;
  $("file").value = ""; // the same file may be chosen again
  if (file) open(file);
};
$("sample").onclick = async () => {
  abandon();
  const number = opened;
  say("Reading sample.png …");
  try {
    const answer = await fetch("sample.png");
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    const file = new File([await answer.blob()], "sample.png");
    if (number === opened) await open(file);
  } catch (error) {
    if (number === opened) complain(`sample.png cannot be loaded (${error.message}).`);
  }
};
$("middle").onclick = () => {
  const { decoded } = bitmap, name = bitmap.name.replace(/(\.[^.]*)?$/, "_middle$1");
  bitmap = null; // compute releases it
  abandon();
  complain("");
  const width = Math.min(MIDDLE, decoded.width), height = Math.min(MIDDLE, decoded.height);
  compute(name, decoded, Math.floor((decoded.width - width) / 2), Math.floor((decoded.height - height) / 2), width, height);
};
$("cancel").onclick = () => {
  abandon();
  stopWorker(); // which may be loading
  say("Cancelled.");
  $("choose").focus();
};
$("engine").onchange = noteEngine;
$("slider").oninput = divide;
$("scroller").onscroll = divide;
$("scroller").onpointerdown = drag;
$("scroller").onpointermove = drag;
$("actual").onchange = layOut;
addEventListener("resize", layOut);

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault(); // or the browser would leave the page for the file
    $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind !== "drop") return;
    const [file] = event.dataTransfer.files;
    if (file) open(file);
    else complain("That was no file. Save the picture first, then drop the file.");
  });
}
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) open(file);
});

$("limit").textContent = ` of at most ${Number((LARGEST_AREA / facts.scale ** 2 / 1e6).toPrecision(2))} megapixels`;
await listed;
say("");
document.documentElement.dataset.ready = "";
