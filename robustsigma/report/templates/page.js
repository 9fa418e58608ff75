"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const folds = all("details");
const onActivate = (node, action) => {
  node.tabIndex = 0;
  node.addEventListener("click", action);
  node.addEventListener("keydown", event => event.key === "Enter" && action());
};
document.documentElement.classList.add("js");

// A link into a folded section opens it, and paper shows every section.
const unfold = hash => {
  const target = document.getElementById(hash.slice(1));
  if (target) all(":scope > details", target).concat(folds.filter(fold => fold.contains(target))).forEach(fold => { fold.open = true; });
};
all("a[href^='#']").forEach(link => link.addEventListener("click", () => unfold(link.hash)));
unfold(location.hash);
addEventListener("beforeprint", () => folds.forEach(fold => { fold.open = true; }));
const button = document.createElement("button");
button.textContent = "Open all sections";
button.addEventListener("click", () => folds.forEach(fold => { fold.open = true; }));
document.querySelector(".contents p").append(button);

// What is wider than the page says that it scrolls.
const measure = () => all(".scroll").forEach(box => box.classList.toggle("over", box.scrollWidth > box.clientWidth + 1));
addEventListener("resize", measure);
folds.forEach(fold => fold.addEventListener("toggle", measure));
measure();

// A click on an image shows it in full size.
const dialog = document.body.appendChild(document.createElement("dialog"));
dialog.addEventListener("click", () => dialog.close());
all("figure img").forEach(image => onActivate(image, () => {
  dialog.replaceChildren(image.cloneNode());
  dialog.showModal();
}));

// A click on a heading sorts the rows within each group, missing values last.
const DIGITS = "0123456789-", RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b";
const UNITS = { h: 3600, min: 60, s: 1 };
const valueOf = cell => {
  if (cell.matches("th, .words")) return cell.textContent.trim();
  const text = (cell.firstChild ? cell.firstChild.textContent : "").replaceAll(",", "").replaceAll("\u2212", "-");
  const times = [...text.matchAll(/([\d.]+) (h|min|s)\b/g)];
  if (times.length) return times.reduce((sum, [, count, unit]) => sum + count * UNITS[unit], 0);
  const [, digits, power = ""] = text.match(/([-+]?[\d.]+)(?:\u00b710(\S+))?/) || [];
  return digits === undefined ? null : Number(`${digits}e${[...power].map(c => DIGITS[RAISED.indexOf(c)]).join("") || 0}`);
};
const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
all("table:not(.settings)").filter(table => table.rows.length > 2).forEach(table => {
  const heads = all("thead .stub, thead [scope=col]", table);
  heads.forEach((head, column) => {
    head.dataset.sort = "";
    onActivate(head, () => {
      const before = head.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : !head.matches(".stub, .words");
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter(row => row.className !== "band").map(row => [valueOf(row.cells[column]), row]);
        const missing = value => Number(value === null);
        rows.sort(([a], [b]) => missing(a) - missing(b) || (descending ? -1 : 1) * compare(a, b));
        body.append(...rows.map(([, row]) => row));
      }
    });
  });
});
