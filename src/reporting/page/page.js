// The page's behaviour. `data` comes from report.py: for each image its size in pixels and its views, which are
// bicubic, the methods and, last, HR. From upscale.py there is no HR, so there are no scores and no error maps, and
// `data.scored` is false. `state` is what is shown; every change of it ends in `render`.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

const ZOOMS = [1, 2, 4, 8, 16, 32]; // screen pixels per image pixel
const CROP_ZOOM = 4; // zoom of the crops until the pictures are zoomed further

const labels = data.images[0].views.map((view) => view.label);
const state = {
  image: null,
  left: "0", // number of a view; with a leading "m", its error map
  right: "1",
  split: 50, // percentage of the width that shows the left picture
  zoom: null, // null: the whole image fits
  x: 0, y: 0, // the image pixel that the crops and the zoomed pictures are centred on
  maps: false, // whether the crops show error maps
};
let order = data.images;

// --- what is shown where ---

// Offset in screen pixels of a picture in a pane that is centred on `point`; a larger picture leaves no gap.
function offset(point, pixels, zoom, pane) {
  const free = pane - pixels * zoom;
  return Math.round(free >= 0 ? free / 2 : Math.min(0, Math.max(free, pane / 2 - point * zoom)));
}

function place(picture, pane, zoom) {
  const {width, height} = state.image;
  const x = offset(state.x, width, zoom, pane.clientWidth);
  const y = offset(state.y, height, zoom, pane.clientHeight);
  picture.style.width = `${width * zoom}px`;
  picture.style.height = `${height * zoom}px`;
  picture.style.transform = `translate(${x}px, ${y}px)`;
  picture.classList.toggle("pixels", zoom >= 1);
  return {x, y};
}

function fitZoom() {
  return Math.min($("stage").clientWidth / state.image.width, $("stage").clientHeight / state.image.height);
}

const stageZoom = () => state.zoom ?? fitZoom();
const cropZoom = () => Math.max(CROP_ZOOM, state.zoom ?? 0);

function show(picture, choice) {
  const isMap = choice.startsWith("m");
  const view = state.image.views[Number(choice.replace("m", ""))];
  const src = isMap ? view.map : view.src;
  if (picture.getAttribute("src") !== src) picture.setAttribute("src", src);
  const scores = view.texts ? `, ${view.texts[0]} dB, SSIM ${view.texts[1]}` : "";
  picture.alt = `${isMap ? "Error map of " : ""}${state.image.name}, ${view.label}${scores}`;
}

const titleOf = (choice) => (choice.startsWith("m") ? `error map of ${labels[choice.slice(1)]}` : labels[choice]);

function render() {
  const stage = $("stage");
  const {width, height} = state.image;
  // The stage has the image's aspect ratio, so that the boundary covers the image only, and fits the screen.
  const tallest = 0.7 * window.innerHeight;
  const widest = Math.min(stage.parentElement.clientWidth, Math.max((tallest * width) / height, 320));
  stage.style.width = $("slider").style.width = `${Math.round(widest)}px`;
  stage.style.height = `${Math.round(Math.min((widest * height) / width, tallest))}px`;

  const zoom = stageZoom();
  show($("left-picture"), state.left);
  show($("right-picture"), state.right);
  const at = place($("left-picture"), stage, zoom);
  place($("right-picture"), stage, zoom);
  $("left-layer").style.clipPath = `inset(0 ${100 - state.split}% 0 0)`;
  $("divider").style.left = `${state.split}%`;
  stage.classList.toggle("pannable", pannable());

  $("slider").value = state.split;
  $("slider").setAttribute(
    "aria-valuetext", `${state.split} % ${titleOf(state.left)}, ${100 - state.split} % ${titleOf(state.right)}`);
  $("zoom").value = state.zoom === null ? "fit" : `${state.zoom}×`;
  $("zoom-fit").disabled = state.zoom === null;
  $("zoom-out").disabled = state.zoom === null;
  $("zoom-in").disabled = zoom >= ZOOMS[ZOOMS.length - 1];
  $("legend").hidden = !(state.maps || state.left.startsWith("m") || state.right.startsWith("m"));

  let corner;
  for (const pane of document.querySelectorAll(".crop")) {
    const hasMap = Boolean(state.image.views[pane.dataset.view].map);
    show(pane.firstChild, state.maps && hasMap ? `m${pane.dataset.view}` : pane.dataset.view);
    corner = place(pane.firstChild, pane, cropZoom());
  }
  outline(at, zoom, corner);
}

// Draws the box on the pictures that marks what the crops show.
function outline(at, zoom, corner) {
  const pane = document.querySelector(".crop");
  const ratio = zoom / cropZoom();
  const sides = [
    ["left", "width", at.x, corner.x, state.image.width, pane.clientWidth],
    ["top", "height", at.y, corner.y, state.image.height, pane.clientHeight],
  ];
  for (const [edge, side, start, cropStart, pixels, paneSide] of sides) {
    $("box").style[edge] = `${start + Math.max(0, -cropStart) * ratio}px`;
    $("box").style[side] = `${Math.min(paneSide, pixels * cropZoom()) * ratio}px`;
  }
}

// --- choosing an image ---

const key = (image) => `#${encodeURIComponent(image.set)}/${encodeURIComponent(image.name)}`;

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function sortImages() {
  const by = Number($("by").value);
  const chosen = $("set").value;
  const value = (image) => image.views[by].scores?.[0] ?? Infinity; // images without a score come last
  const compare = {
    worst: (a, b) => value(a) - value(b),
    best: (a, b) => (value(b) === Infinity ? -1 : value(a) === Infinity ? 1 : value(b) - value(a)),
    name: (a, b) => a.name.localeCompare(b.name),
  }[$("order").value];
  order = data.images.filter((image) => !chosen || image.set === chosen).sort((a, b) => compare(a, b) || 0);

  $("list").replaceChildren(...order.map((image) => {
    const link = document.createElement("a");
    link.href = key(image);
    const thumb = new Image();
    thumb.loading = "lazy";
    thumb.alt = ""; // the name is beside it
    thumb.src = image.thumb;
    const score = image.views[by].texts?.[0] ?? "";
    link.append(thumb, element("span", "label", image.name), " ", element("span", "score", score));
    link.title = `${image.set} / ${image.name}`;
    const item = document.createElement("li");
    item.append(link);
    return item;
  }));
}

function markCurrent() {
  for (const link of $("list").querySelectorAll("a")) {
    const current = link.getAttribute("href") === key(state.image);
    if (current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    if (current) scrollListTo(link.parentElement);
  }
  const at = order.indexOf(state.image);
  $("previous").disabled = at <= 0;
  $("next").disabled = at < 0 || at === order.length - 1;
  const {name, set, scale, width, height} = state.image;
  const place = at < 0 ? "" : `, ${at + 1} of ${order.length}`;
  $("name").replaceChildren(name, " ", element("small", "", `${set} ×${scale}, ${width}×${height}${place}`));
}

// Scrolls only the list; scrollIntoView would scroll the page too.
function scrollListTo(item) {
  const list = $("list").getBoundingClientRect();
  const box = item.getBoundingClientRect();
  if (box.top < list.top || box.bottom > list.bottom) $("list").scrollTop += box.top - list.top;
  if (box.left < list.left || box.right > list.right) $("list").scrollLeft += box.left - list.left;
}

function open(image) {
  state.image = image;
  [state.x, state.y] = image.point;
  state.zoom = null;
  $("crops").replaceChildren(...image.views.map((view, number) => {
    const pane = element("div", "crop", "");
    pane.dataset.view = number;
    const picture = new Image();
    picture.draggable = false;
    pane.append(picture);
    const caption = element("figcaption", "", view.label);
    const scores = element("span", "scores", view.texts || !data.scored ? "" : "PSNR in dB, SSIM");
    (view.texts ?? []).forEach((text, at) => {
      scores.append(at ? " / " : "", element(view.best[at] ? "strong" : "span", "", text));
    });
    caption.append(scores);
    const figure = document.createElement("figure");
    figure.append(pane, caption);
    return figure;
  }));
  markCurrent();
  render();
}

function openFromAddress() {
  open(data.images.find((image) => key(image) === location.hash) ?? state.image ?? order[0]);
}

function step(by) {
  const next = order[order.indexOf(state.image) + by];
  if (next) location.hash = key(next);
}

// --- moving and zooming ---

const limit = (value, top) => Math.min(top, Math.max(0, value));

function moveTo(x, y) {
  state.x = limit(x, state.image.width);
  state.y = limit(y, state.image.height);
  render();
}

function pannable() {
  const zoom = stageZoom();
  return state.image.width * zoom > $("stage").clientWidth + 1 || state.image.height * zoom > $("stage").clientHeight + 1;
}

function zoomBy(direction) {
  const now = stageZoom();
  const next = direction > 0 ? ZOOMS.find((zoom) => zoom > now) : ZOOMS.findLast((zoom) => zoom < now);
  if (direction > 0) state.zoom = next ?? state.zoom;
  else state.zoom = next && next > fitZoom() ? next : null;
  render();
}

// The image pixel under the pointer.
function pointAt(event) {
  const stage = $("stage");
  const box = stage.getBoundingClientRect();
  const zoom = stageZoom();
  return [
    (event.clientX - box.left - offset(state.x, state.image.width, zoom, stage.clientWidth)) / zoom,
    (event.clientY - box.top - offset(state.y, state.image.height, zoom, stage.clientHeight)) / zoom,
  ];
}

function split(event) {
  const box = $("stage").getBoundingClientRect();
  state.split = Math.round(limit((100 * (event.clientX - box.left)) / box.width, 100));
  render();
}

// Calls `move(event, dx, dy)` while a pointer pressed on `pane` moves, and `tap(event)` if it is released unmoved.
function dragging(pane, begin) {
  pane.addEventListener("pointerdown", (down) => {
    if (down.button !== 0) return;
    const {move, tap} = begin(down);
    let last = down;
    let moved = false;
    const follow = (event) => {
      moved ||= Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) > 3;
      if (moved) move(event, event.clientX - last.clientX, event.clientY - last.clientY);
      last = event;
    };
    const end = (event) => {
      pane.removeEventListener("pointermove", follow);
      pane.removeEventListener("pointerup", end);
      pane.removeEventListener("pointercancel", end);
      if (event.type === "pointerup" && !moved) tap?.(event);
    };
    pane.setPointerCapture(down.pointerId);
    pane.addEventListener("pointermove", follow);
    pane.addEventListener("pointerup", end);
    pane.addEventListener("pointercancel", end);
  });
}

// A `move` that pans a pane. The point is kept at the pane's centre, so that reversing at an edge responds at once.
function pan(pane, zoom) {
  const middle = (point, pixels, side) =>
    pixels * zoom > side ? (side / 2 - offset(point, pixels, zoom, side)) / zoom : point;
  return (_, dx, dy) => moveTo(
    middle(middle(state.x, state.image.width, pane.clientWidth) - dx / zoom, state.image.width, pane.clientWidth),
    middle(middle(state.y, state.image.height, pane.clientHeight) - dy / zoom, state.image.height, pane.clientHeight));
}

dragging($("stage"), (down) => {
  const box = $("stage").getBoundingClientRect();
  const tap = (event) => moveTo(...pointAt(event));
  if (Math.abs(down.clientX - box.left - (box.width * state.split) / 100) < 18) return {move: split, tap};
  return {move: pannable() ? pan($("stage"), stageZoom()) : tap, tap};
});
dragging($("crops"), () => ({move: pan(document.querySelector(".crop"), cropZoom())}));

$("stage").addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return; // Ctrl is set by pinching on a touchpad; otherwise the wheel scrolls the page
  event.preventDefault();
  if (event.deltaY) zoomBy(-Math.sign(event.deltaY));
}, {passive: false});

$("stage").addEventListener("keydown", (event) => {
  const by = document.querySelector(".crop").clientWidth / cropZoom() / 8;
  const actions = {
    ArrowLeft: () => moveTo(state.x - by, state.y),
    ArrowRight: () => moveTo(state.x + by, state.y),
    ArrowUp: () => moveTo(state.x, state.y - by),
    ArrowDown: () => moveTo(state.x, state.y + by),
    "+": () => zoomBy(1),
    "=": () => zoomBy(1),
    "-": () => zoomBy(-1),
    0: () => $("zoom-fit").click(),
  };
  if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  actions[event.key]();
});

// --- controls ---

function fill(select, choices, value) {
  select.replaceChildren(...choices.map(([choice, text]) => new Option(text, choice)));
  select.value = value;
}

const methods = (data.scored ? labels.slice(0, -1) : labels).map((label, number) => [String(number), label]);
fill($("by"), methods, "1");
const sets = [...new Set(data.images.map((image) => image.set))];
fill($("set"), [["", "all"], ...sets.map((set) => [set, set])], "");
$("set-field").hidden = sets.length < 2;
for (const side of ["left", "right"]) {
  const maps = document.createElement("optgroup");
  maps.label = "error maps";
  maps.append(...methods.map(([number, label]) => new Option(`error of ${label}`, `m${number}`)));
  fill($(side), labels.map((label, number) => [String(number), label]), state[side]);
  if (data.scored) $(side).append(maps);
  $(side).addEventListener("change", () => {
    state[side] = $(side).value;
    render();
  });
}
for (const id of ["set", "order", "by"]) {
  $(id).addEventListener("change", () => {
    sortImages();
    if (order.includes(state.image)) markCurrent();
    else location.hash = key(order[0]);
  });
}
$("slider").addEventListener("input", () => {
  state.split = Number($("slider").value);
  render();
});
$("maps").addEventListener("change", () => {
  state.maps = $("maps").checked;
  render();
});
$("zoom-in").addEventListener("click", () => zoomBy(1));
$("zoom-out").addEventListener("click", () => zoomBy(-1));
$("zoom-fit").addEventListener("click", () => {
  state.zoom = null;
  render();
});
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
window.addEventListener("hashchange", openFromAddress);
window.addEventListener("resize", render);

for (const id of ["order-field", "by-field", "maps-field"]) $(id).hidden = !data.scored;
if (!data.scored) $("order").value = "name";
$("legend-scale").style.background = `linear-gradient(to right, ${data.errorColors})`;
$("legend-max").textContent = `${data.errorMax} and more, of 255`;
$("images").hidden = false;
sortImages();
openFromAddress();
