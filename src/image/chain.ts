/** Every image that another one is made of. */
import type { Node } from '../block/node.ts';

/** An image, the files that hold its bytes, and the same for what lies below it. */
export function* chainOf(root: Node | null): Generator<Node> {
  for (let node = root; node !== null; node = node.backing) {
    yield node;
    for (const file of node.dataFiles) yield* chainOf(file);
  }
}
