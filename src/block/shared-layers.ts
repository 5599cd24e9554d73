/**
 * Read-only layers that several chains use: each is opened once for one file (same device and inode, or same URL) and one
 * declared format, counted, and closed by whoever uses it last.
 */
import { present } from '../base/assert.ts';
import type { Node } from './node.ts';

interface SharedNode {
  readonly node: Node;
  users: number;
}

export class SharedLayers {
  /** By identity and format, while somebody uses them; a promise while they open. */
  readonly #shared = new Map<string, Promise<SharedNode>>();
  readonly #keyOf = new Map<Node, string>();

  /** One more user of a layer, which `open` opens when it is the first; callers that come meanwhile wait for it. Errors: those of `open`. */
  async use(identity: string, format: string | null, open: () => Promise<Node>): Promise<Node> {
    const key = `${identity}:${format ?? ''}`;
    const known = this.#shared.get(key);
    if (known !== undefined) {
      const shared = await known;
      shared.users++;
      return shared.node;
    }
    const opening = open().then((node) => ({ node, users: 0 }));
    this.#shared.set(key, opening);
    try {
      const shared = await opening;
      this.#keyOf.set(shared.node, key);
      shared.users++;
      return shared.node;
    } catch (error) {
      this.#shared.delete(key);
      throw error;
    }
  }

  /** One more user of a layer that has some. */
  async useToo(layer: Node): Promise<void> {
    const key = present(this.#keyOf.get(layer), 'a layer of a chain is shared');
    const shared = await present(this.#shared.get(key), 'a layer in use is known');
    shared.users++;
  }

  /** One user less. True: it was the last one, or the node is not shared at all, and the caller closes it. */
  async letGo(node: Node): Promise<boolean> {
    const key = this.#keyOf.get(node);
    if (key === undefined) return true;
    const shared = await this.#shared.get(key);
    if (shared !== undefined && --shared.users > 0) return false;
    this.#shared.delete(key);
    this.#keyOf.delete(node);
    return true;
  }
}
