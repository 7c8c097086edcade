// The photos of the question: added by choosing, dropping or pasting; moved and removed by mouse or keyboard.
import { el, say } from './dom.js'

export class ImageList {
  /** list: the <ol>; drop: the frame that files are dropped on; changed: called after every change. */
  constructor(list, drop, changed) {
    Object.assign(this, { list, drop, changed, most: 16, items: [], dragged: null })
    // The whole page takes files: one that is dropped beside the frame would otherwise replace the page.
    for (const type of ['dragover', 'drop', 'dragleave']) {
      document.addEventListener(type, (event) => this.#dragged(event, type))
    }
    document.addEventListener('paste', (event) => {
      const files = [...(event.clipboardData?.files ?? [])]
      if (files.length) this.add(files)
    })
  }

  /** Add files at the end; what is beyond the most that the service takes is left out, and said. */
  add(files) {
    const room = this.most - this.items.length
    const taken = files.slice(0, Math.max(0, room))
    this.items.push(...taken.map((file) => ({ file, name: file.name || 'pasted.png', url: URL.createObjectURL(file) })))
    this.draw()
    const left = files.length - taken.length
    say(`${this.items.length} photos.` + (left ? ` ${left} left out: this service takes ${this.most}.` : ''))
    this.changed(left ? `${left} left out: this service takes at most ${this.most} photos.` : '')
  }

  replace(files) {
    this.items.forEach(({ url }) => URL.revokeObjectURL(url))
    this.items = []
    this.add(files)
  }

  remove(index) {
    URL.revokeObjectURL(this.items.splice(index, 1)[0].url)
    this.draw()
    say(`Image ${index} removed, ${this.items.length} left.`)
    this.changed('')
    const next = this.list.children[Math.min(index, this.items.length - 1)]?.querySelector('.remove')
    ;(next ?? this.drop.querySelector('input')).focus()
  }

  move(index, to) {
    if (to < 0 || to >= this.items.length || to === index) return
    this.items.splice(to, 0, ...this.items.splice(index, 1))
    this.draw()
    say(`Image ${index} is now image ${to}.`)
    this.changed('')
    const [front, back] = this.list.children[to].querySelectorAll('.move')
    const [same, other] = to < index ? [front, back] : [back, front]
    ;(same.disabled ? other : same).focus()
  }

  /** Mark the photo that the service refused; null takes the mark away. */
  mark(index) {
    ;[...this.list.children].forEach((item, k) => item.classList.toggle('wrong', k === index))
  }

  /** The files as base64, in order. */
  encoded() {
    return Promise.all(this.items.map(({ file }) => base64(file)))
  }

  draw() {
    this.list.replaceChildren(...this.items.map((item, index) => this.#thumb(item, index)))
  }

  #thumb({ name, url }, index) {
    const last = this.items.length - 1
    const button = (label, text, disabled, onclick, kind) =>
      el('button', { type: 'button', 'aria-label': label, title: label, disabled, onclick, class: kind }, text)
    const image = el('img', { src: url, alt: `image ${index}: ${name}`, draggable: 'false' })
    image.addEventListener('error', () => image.replaceWith(el('span', { class: 'unseen' }, `${name} cannot be shown`)))
    const item = el('li', { draggable: 'true', title: name },
      image,
      el('span', { class: 'caption' }, `image ${index}`),
      el('span', { class: 'tools' },
        button(`Move image ${index} to the front`, '←', index === 0, () => this.move(index, index - 1), 'move'),
        button(`Move image ${index} to the back`, '→', index === last, () => this.move(index, index + 1), 'move'),
        button(`Remove image ${index}`, '×', false, () => this.remove(index), 'remove')))
    item.addEventListener('dragstart', (event) => {
      this.dragged = index
      event.dataTransfer.effectAllowed = 'move'
      event.dataTransfer.setData('text/plain', String(index))
    })
    item.addEventListener('dragend', () => { this.dragged = null })
    item.addEventListener('dragover', (event) => { if (this.dragged !== null) event.preventDefault() })
    item.addEventListener('drop', (event) => {
      if (this.dragged === null) return
      event.preventDefault()
      event.stopPropagation()
      this.move(this.dragged, index)
    })
    return item
  }

  #dragged(event, type) {
    if (this.dragged !== null || !event.dataTransfer.types.includes('Files')) return
    event.preventDefault()
    this.drop.classList.toggle('over', type === 'dragover')
    if (type !== 'drop') return
    const files = [...event.dataTransfer.files]
    if (files.length) this.add(files)
  }
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader()
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(',') + 1))
    reader.onerror = () => reject(reader.error)
    reader.readAsDataURL(file)
  })
}
