// A small, safe part of Markdown: paragraphs, headings, lists, code, bold, italic and links, as DOM nodes.

import { element } from "./dom.js";

// A star between letters or digits is a product, not emphasis.
const INLINE = /(`+)(.+?)\1|(?<!\w)\*\*(.+?)\*\*(?!\w)|(?<![\w*])\*([^*\s](?:[^*]*[^*\s])?)\*(?![\w*])|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/s;

function inline(text) {
  const nodes = [];
  for (let match; (match = INLINE.exec(text)); text = text.slice(match.index + match[0].length)) {
    const [, , code, bold, italic, words, link] = match;
    nodes.push(text.slice(0, match.index));
    if (code !== undefined) nodes.push(element("code", {}, code));
    else if (bold !== undefined) nodes.push(element("strong", {}, ...inline(bold)));
    else if (italic !== undefined) nodes.push(element("em", {}, ...inline(italic)));
    else nodes.push(element("a", { href: link, rel: "noopener noreferrer", target: "_blank" }, words));
  }
  return [...nodes, text].filter((node) => node !== "");
}

const FENCE = /^\s*```/;
const HEADING = /^#{1,6}\s+(.*)/;
const BULLET = /^\s*[-*]\s+(.*)/;
const NUMBER = /^\s*(\d+)[.)]\s+(.*)/;

/** The nodes of a Markdown text; whatever is not understood stays as it was written. */
export function markdown(source) {
  const made = document.createDocumentFragment();
  const lines = source.split("\n");
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) made.append(element("p", {}, ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  const list = (at, pattern, tag) => {
    const first = pattern.exec(lines[at]);
    const items = element(tag, tag === "ol" ? { start: first[1] } : {});
    for (let match; at < lines.length && (match = pattern.exec(lines[at])); at++) {
      items.append(element("li", {}, ...inline(match[match.length - 1])));
    }
    made.append(items);
    return at;
  };
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    if (FENCE.test(line)) {
      flush();
      const start = ++at;
      while (at < lines.length && !FENCE.test(lines[at])) at++;
      made.append(element("pre", { tabindex: "0" }, element("code", {}, lines.slice(start, at++).join("\n"))));
    } else if (BULLET.test(line) || NUMBER.test(line)) {
      flush();
      at = BULLET.test(line) ? list(at, BULLET, "ul") : list(at, NUMBER, "ol");
    } else if (HEADING.test(line)) {
      flush();
      made.append(element("h3", {}, ...inline(HEADING.exec(line)[1])));
      at++;
    } else {
      if (line.trim() === "") flush();
      else paragraph.push(line);
      at++;
    }
  }
  flush();
  return made;
}
