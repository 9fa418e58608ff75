// Measures pages in frames of several widths and color schemes, with every section open, for test_browser.py.
const frames = [], silent = [];
const show = (page, width, scheme) => {
  const frame = document.createElement("iframe");
  Object.assign(frame, { width, height: 900, srcdoc: page });
  frame.style.colorScheme = scheme;
  return document.body.appendChild(frame);
};
for (const [name, page] of Object.entries(PAGES)) {
  for (const scheme of ["light", "dark"]) for (const width of [1280, 390]) {
    frames.push([`${name}, ${scheme}, ${width}`, show(page, width, scheme)]);
  }
  silent.push([name, show(page.replace(/<script>.*?<.script>/s, ""), 390, "light")]);
}
const rgb = text => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return [r, g, b, a]; };
const luminance = color => {
  const [r, g, b] = color.map(v => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const backgroundOf = (node, style) => {
  for (let each = node; each; each = each.parentElement) {
    const color = rgb(style(each).backgroundColor);
    if (color[3] === 1) return color;
    if (color[3] !== 0) throw new Error("a translucent background");
  }
  throw new Error("no background");
};
const measured = (frame) => {
  const page = frame.contentDocument, window = frame.contentWindow;
  const all = selector => [...page.querySelectorAll(selector)], style = node => window.getComputedStyle(node);
  const root = page.documentElement, folded = root.scrollHeight;
  // A link opens its section, and then every section is open.
  const links = all(".contents a[href^='#']"), sections = links.map(link => page.querySelector(link.hash + " > details"));
  const shut = sections.filter(Boolean).filter(fold => fold.open).length;
  links.forEach(link => link.click());
  const opened = sections.every(fold => !fold || fold.open);
  all("details").forEach(fold => { fold.open = true; });
  window.dispatchEvent(new window.Event("resize"));
  const faint = [];
  let texts = 0;
  for (const node of all("body *")) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!own || !node.getClientRects().length || node.tagName === "SCRIPT") continue;
    texts += 1;
    const [light, dark] = [rgb(style(node).color), backgroundOf(node, style)].map(luminance).sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5 || style(node).opacity !== "1") faint.push(`${node.tagName}.${node.className} ${contrast.toFixed(2)}`);
  }
  const unannounced = all(".scroll").filter(box =>
    (box.scrollWidth > box.clientWidth + 1) !== (style(box.querySelector(".swipe")).display === "block")).length;
  const overflow = root.scrollWidth - root.clientWidth;
  // The second column of the first table, sorted twice.
  const [table] = all("table"), head = table.querySelector("[scope=col]");
  const order = () => [...table.tBodies].map(body => [...body.rows].filter(row => row.className !== "band")
    .map(row => row.cells[1].firstChild.data.trim()));
  const orders = [order()];
  for (let click = 0; click < 2; click += 1) { head.click(); orders.push(order()); }
  const image = page.querySelector("figure img"), dialog = page.querySelector("dialog");
  image.click();
  const zoomed = dialog.open && dialog.querySelector("img").src === image.src;
  dialog.click();
  return { folded, unfolded: root.scrollHeight, shut, opened, texts, faint, overflow, unannounced, orders,
    zoomed: zoomed && !dialog.open, dark: style(page.body).backgroundColor !== "rgb(255, 255, 255)" };
};
// Without the script: folded sections still open, and what may scroll on a phone says so.
const unscripted = frame => {
  const page = frame.contentDocument, root = page.documentElement, folds = [...page.querySelectorAll("details")];
  const wide = [...page.querySelectorAll(".wide > .swipe")].map(hint => frame.contentWindow.getComputedStyle(hint).display);
  folds[0].querySelector("summary").click();
  return { overflow: root.scrollWidth - root.clientWidth, opened: folds[0].open, hints: [...new Set(wide)] };
};
addEventListener("load", () => {
  const plain = Object.fromEntries(silent.map(([name, frame]) => [name, unscripted(frame)]));
  const found = Object.fromEntries(frames.map(([name, frame]) => [name, measured(frame)]));
  document.body.replaceChildren(Object.assign(document.createElement("pre"), { textContent: JSON.stringify([found, plain]) }));
});
