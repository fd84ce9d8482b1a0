// Runs the network and bicubic upscaling, so that the page stays responsive. Messages: see page.js.

let ort, session, facts;

onmessage = async ({ data }) => {
  try {
    if (data.kind === "start") await start(data);
    else if (data.kind === "run") await run(data);
  } catch (error) {
    // onnxruntime throws numbers when its memory is used up.
    const text = typeof error === "number" ? "out of memory" : String(error?.message ?? error);
    postMessage({ kind: "failed", during: data.kind, text });
  }
};

async function start({ engine, threads, ...rest }) {
  facts = rest.facts;
  ort = await import(engine === "webgpu" ? "./ort.webgpu.min.mjs" : "./ort.wasm.min.mjs");
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
  const answer = await fetch(new URL(`${facts.file}?${facts.version}`, import.meta.url));
  if (!answer.ok) throw new Error(`${facts.file}: the server answers ${answer.status}`);
  const model = await answer.arrayBuffer();
  session = await ort.InferenceSession.create(model, { executionProviders: [engine], graphOptimizationLevel: "all" });
  postMessage({ kind: "ready" });
}

// The picture is RGBA, 8 bits. Alpha is enlarged by bicubic.
async function run({ pixels, width, height, tile }) {
  const scale = facts.scale;
  spreadColours(pixels, width, height);
  const big = bicubic(pixels, width, height, scale);
  postMessage({ kind: "bicubic", pixels: big, width: width * scale, height: height * scale });
  const out = new Uint8ClampedArray(big); // colours are written over; alpha stays
  const parts = tiles(width, height, tile);
  const begun = performance.now();
  for (const [number, part] of parts.entries()) {
    postMessage({ kind: "progress", done: number, total: parts.length, seconds: (performance.now() - begun) / 1000 });
    await compute(pixels, width, height, part, out);
  }
  const seconds = (performance.now() - begun) / 1000;
  postMessage({ kind: "done", pixels: out, width: width * scale, height: height * scale, seconds, tiles: parts.length },
    [out.buffer]);
}

// Gives every transparent pixel the colour of the nearest one that is not. A canvas keeps none there, and its black would
// darken the edges of what is enlarged.
function spreadColours(pixels, width, height) {
  const far = new Uint16Array(width * height);
  for (let i = 0; i < far.length; i++) if (!pixels[4 * i + 3]) far[i] = 65535;
  const take = (to, from) => {
    if (far[from] + 1 >= far[to]) return;
    far[to] = far[from] + 1;
    pixels.copyWithin(4 * to, 4 * from, 4 * from + 3);
  };
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (x > 0) take(i, i - 1);
      if (y > 0) take(i, i - width);
    }
  }
  for (let y = height - 1, i = width * height - 1; y >= 0; y--) {
    for (let x = width - 1; x >= 0; x--, i--) {
      if (x < width - 1) take(i, i + 1);
      if (y < height - 1) take(i, i + width);
    }
  }
}

// Tiles of nearly equal sides of at most `tile` pixels; a tile of 0 is the whole picture.
function tiles(width, height, tile) {
  const cuts = (length) => {
    const count = tile ? Math.ceil(length / tile) : 1;
    return Array.from({ length: count }, (_, i) => [i, i + 1].map((n) => Math.round((n * length) / count)));
  };
  return cuts(height).flatMap(([top, bottom]) => cuts(width).map(([left, right]) => ({ left, top, right, bottom })));
}

// The network's output for one tile, of which it sees `halo` pixels more on each side, written into `out`.
async function compute(pixels, width, height, { left, top, right, bottom }, out) {
  const { scale, range, halo } = facts;
  const x0 = Math.max(0, left - halo), y0 = Math.max(0, top - halo);
  const w = Math.min(width, right + halo) - x0, h = Math.min(height, bottom + halo) - y0;
  const input = new Float32Array(3 * w * h);
  for (let y = 0, i = 0; y < h; y++) {
    for (let x = 0, from = 4 * ((y0 + y) * width + x0); x < w; x++, i++, from += 4) {
      for (let c = 0; c < 3; c++) input[c * w * h + i] = (pixels[from + c] * range) / 255;
    }
  }
  const image = new ort.Tensor("float32", input, [1, 3, h, w]);
  const { sr } = await session.run({ image });
  const data = await sr.getData();
  const plane = scale * scale * w * h;
  for (let y = scale * top; y < scale * bottom; y++) {
    let from = (y - scale * y0) * scale * w + scale * (left - x0);
    let to = 4 * (y * scale * width + scale * left);
    for (let x = scale * left; x < scale * right; x++, from++, to += 4) {
      // The array clamps, and rounds halves to even, as torch does.
      for (let c = 0; c < 3; c++) out[to + c] = (data[c * plane + from] * 255) / range;
    }
  }
  sr.dispose();
  image.dispose();
}

// MATLAB's imresize(image, scale): Keys' kernel with a = -1/2, borders mirrored.
function bicubic(pixels, width, height, scale) {
  const kernel = (t) => {
    t = Math.abs(t);
    return t < 1 ? (1.5 * t - 2.5) * t * t + 1 : t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
  };
  const taps = (length) => Array.from({ length: length * scale }, (_, i) => {
    const at = (i + 0.5) / scale - 0.5, first = Math.floor(at) - 1;
    return [0, 1, 2, 3].map((n) => {
      let from = (((first + n) % (2 * length)) + 2 * length) % (2 * length);
      if (from >= length) from = 2 * length - 1 - from;
      return { from, weight: kernel(at - first - n) };
    });
  });
  // Rows first, as the project's own resize does: an 8-bit picture is rounded after each pass.
  const columns = taps(width), rows = taps(height);
  const tall = new Uint8ClampedArray(4 * width * height * scale);
  rows.forEach((row, y) => {
    const [a, b, c, d] = row.map(({ from }) => 4 * width * from), [p, q, r, s] = row.map(({ weight }) => weight);
    for (let i = 0, to = 4 * width * y; i < 4 * width; i++, to++) {
      tall[to] = p * pixels[a + i] + q * pixels[b + i] + r * pixels[c + i] + s * pixels[d + i];
    }
  });
  const out = new Uint8ClampedArray(4 * width * height * scale * scale);
  for (let y = 0, to = 0; y < height * scale; y++) {
    const line = 4 * width * y;
    for (const [a, b, c, d] of columns) {
      for (let i = 0; i < 4; i++, to++) {
        out[to] = a.weight * tall[line + 4 * a.from + i] + b.weight * tall[line + 4 * b.from + i]
          + c.weight * tall[line + 4 * c.from + i] + d.weight * tall[line + 4 * d.from + i];
      }
    }
  }
  return out;
}
