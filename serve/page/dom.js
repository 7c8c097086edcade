// Elements from plain values. Text is always text: what a model or a file name says is never read as HTML.

const SVG = 'http://www.w3.org/2000/svg'

export const byId = (id) => document.getElementById(id)

/** An element: attributes (`on...` is a listener, false and null are left out) and children (text or nodes). */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children)
}

/** The same for SVG. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children)
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value)
    else node.setAttribute(key, value === true ? '' : value)
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ''))
  return node
}

/** Tell screen readers, without moving the focus. */
export function say(text) {
  byId('live').textContent = text
}

/** The colour of a camera, as the style sheet has it for light and dark. */
export function cameraColor(index) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--c${index % 5}`).trim()
}
