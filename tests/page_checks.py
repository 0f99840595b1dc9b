"""What every page of this project must hold to, as scripts for a browser."""

from __future__ import annotations

CUT = """
const outside = e => !e.closest('.scroll') || e.matches('.scroll');
return [...document.querySelectorAll('header *, main *')].filter(outside).filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && (box.right > arguments[0] + 1 || box.left < -1);
}).map(e => e.outerHTML.slice(0, 80));
"""
"""Elements that reach beyond the page, whose width is the argument, but for what scrolls on its own."""

CONTRAST = """
const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number);
                     return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
                      if (!/, 0\\)$/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
const found = {};
for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const svg = e.closest('svg'), style = getComputedStyle(e);
    const [a, b] = [light(svg ? style.fill : style.color), light(svg ? 'rgb(255, 255, 255)' : ground(e))].sort();
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found[e.tagName + ' ' + e.textContent.trim().slice(0, 30)] = ratio;
}
return found;
"""
"""Texts whose contrast is below that of WCAG 2.2, level AA."""
