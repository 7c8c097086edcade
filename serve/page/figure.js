// The figure of the cameras: in 3D where the browser can, else flat and said so; its keys, buttons and words.
import { el, svg } from './dom.js'
import { detours, placed } from './poses.js'
import { planFromAbove } from './plan.js'
import { whereabouts } from './words.js'

const FOV_DEG = 60
const TEXTURE_SIDE = 512
const KEYS = {
  ArrowLeft: (view) => view.turn(-1, 0), ArrowRight: (view) => view.turn(1, 0),
  ArrowUp: (view) => view.turn(0, 1), ArrowDown: (view) => view.turn(0, -1),
  '+': (view) => view.zoom(1), '=': (view) => view.zoom(1), '-': (view) => view.zoom(-1),
  r: (view) => view.reset(), Home: (view) => view.reset(), a: (view) => view.above(),
}

let current = null

/**
 * The figure of a reply; null when there is no pose to draw. images: [{url, name}] of the question; truth: the true
 * poses from image 0, or nothing; fov: horizontal field of view in degrees, if known.
 */
export async function cameraFigure({ poses, images, truth = [], fov }) {
  current?.dispose()
  current = null
  if (!poses.length) return null
  const cameras = placed(poses, images.length)
  const shown = {
    cameras, detours: detours(poses), truth: truth.length ? placed(truth, images.length) : [], fov: fov ?? FOV_DEG,
  }
  const sentences = cameras.slice(1).map(({ index, matrix }) => ({ index, text: `${whereabouts(matrix)}.` }))
  const title = `Cameras of ${cameras.length} photos. ` + sentences.map(({ index, text }) =>
    `Image ${index} was taken ${text}`).join(' ')
  const missing = images.map((_, index) => index).filter((index) => !cameras.some((camera) => camera.index === index))
  const stage = await view({ ...shown, title, images })
  return el('section', { class: 'box', 'aria-labelledby': 'cameras-heading' },
    el('h3', { id: 'cameras-heading' }, 'Where the photos were taken'),
    stage,
    legend(shown),
    el('ul', { class: 'places' }, sentences.map(({ index, text }) =>
      el('li', {}, dot(index), el('span', {}, el('b', {}, `image ${index}:`), ` ${text}`)))),
    missing.length ? el('p', { class: 'note' }, `Not drawn, for want of a motion that leads there: image ${missing.join(', ')}.`) : null,
    el('p', { class: 'note' }, 'Seen from image 0, whose camera is taken as level. Squares are 1 m. ' +
      (fov ? '' : `The photos' field of view is not known; ${FOV_DEG}° is drawn.`)))
}

async function view(shown) {
  if (!document.createElement('canvas').getContext('webgl2')) {
    return el('div', {}, planFromAbove(shown), el('p', { class: 'note', id: 'flat' },
      'This browser cannot draw in 3D (it has no WebGL 2), so the cameras are drawn flat, from above.'))
  }
  const canvas = el('canvas', { tabindex: '0', role: 'img', 'aria-label': shown.title, 'aria-describedby': 'view-keys' })
  const stage = el('div', { class: 'stage' }, canvas)
  const { CameraView } = await import('./view3d.js')
  current = new CameraView(canvas)
  await current.show({ ...shown, images: await Promise.all(shown.images.map(texture)) })
  canvas.addEventListener('keydown', (event) => {
    const act = event.ctrlKey || event.metaKey || event.altKey ? null : KEYS[event.key]
    if (!act) return
    event.preventDefault()
    act(current)
  })
  const button = (text, label, act) =>
    el('button', { type: 'button', class: 'small', 'aria-label': label, title: label, onclick: () => act(current) }, text)
  return el('div', {}, stage, el('div', { class: 'tools' },
    button('Reset', 'Reset the view', (v) => v.reset()), button('From above', 'Look from above', (v) => v.above()),
    button('+', 'Nearer', (v) => v.zoom(1)), button('−', 'Farther', (v) => v.zoom(-1)),
    el('span', { class: 'note', id: 'view-keys' }, 'Drag to turn; or arrow keys, + and −, A from above, R reset.')))
}

/** A copy of a photo that is small enough for every graphics card; null when the browser cannot read it. */
async function texture({ url }) {
  const image = new Image()
  image.src = url
  try {
    await image.decode()
  } catch {
    return null  // drawn as an empty plane; the thumbnail says that it cannot be shown
  }
  const scale = Math.min(1, TEXTURE_SIDE / Math.max(image.naturalWidth, image.naturalHeight))
  const canvas = document.createElement('canvas')
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale))
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale))
  canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height)
  return canvas
}

function legend({ cameras, detours: others, truth }) {
  const line = (kind, text) => el('span', { class: 'key' },
    svg('svg', { viewBox: '0 0 24 8', 'aria-hidden': 'true', class: kind }, svg('line', { x1: 1, y1: 4, x2: 23, y2: 4 })), text)
  const over = others.map(({ index, over: via }) => `image ${index} by way of ${via}`).join(', ')
  return el('p', { class: 'legend' },
    cameras.length > 1 ? line('way', 'the way from photo to photo') : null,
    others.length ? line('detour', over) : null,
    truth.length ? line('truth', 'what is true') : null)
}

export function dot(index) {
  return el('i', { class: `dot c${index % 5}`, 'aria-hidden': 'true' }, String(index))
}
