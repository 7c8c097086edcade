// Questions to click: files beside the page.
import { byId, el } from './dom.js'

const FOLDER = 'page/examples/'

/** Show the examples; `chosen(example, files)` is called with one that was clicked. */
export async function showExamples(chosen) {
  const list = byId('examples')
  let examples
  try {
    const response = await fetch(`${FOLDER}index.json`)
    if (!response.ok) throw new Error(`status ${response.status}`)
    examples = await response.json()
  } catch (error) {
    note(`The examples could not be loaded (${error.message}). Your own photos work all the same.`)
    return
  }
  list.replaceChildren(...examples.map((example) => el('li', {},
    el('button', { type: 'button', class: 'example', onclick: () => pick(example, chosen) },
      el('span', { class: 'strip' }, example.images.map((name) => el('img', { src: FOLDER + name, alt: '', width: 72, height: 72 }))),
      el('b', {}, example.title),
      el('span', { class: 'soft' }, example.question)))))
}

async function pick(example, chosen) {
  try {
    chosen(example, await Promise.all(example.images.map(file)))
  } catch (error) {
    note(`The example's photos could not be loaded (${error.message}). Try again.`)
  }
}

async function file(name) {
  const response = await fetch(FOLDER + name)
  if (!response.ok) throw new Error(`status ${response.status}`)
  return new File([await response.blob()], name, { type: 'image/jpeg' })
}

function note(text) {
  const line = byId('examples-note')
  line.textContent = text
  line.hidden = false
}
