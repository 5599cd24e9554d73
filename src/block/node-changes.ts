/**
 * What is around every change of a node, in this order: jobs that take part, the node's requests in flight, the flush mark,
 * the changes of content in flight, the dirty bitmaps; then the driver makes it. `writeAtOnce` does the same without what
 * is there for those who wait.
 */
import { type GuestOffset, guestOffset } from '../base/units.ts';
import { type ContentChange, interposed } from './content-change.ts';
import { Epochs } from './epochs.ts';
import type { Node } from './node.ts';
import { inContext } from './request-rules.ts';

export class NodeChanges {
  readonly #node: Node;
  /** Changes of content alone. */
  readonly #content = new Epochs();

  constructor(node: Node) {
    this.#node = node;
  }

  /** No change of content that had begun at the call is in flight any more. */
  quiesceContent(): Promise<void> {
    return this.#content.quiesce();
  }

  /** A change of content: in the dirty bitmaps before it begins. Errors: those of `run` and of jobs that take part. */
  ofContent(op: string, change: ContentChange, run: () => Promise<void>): Promise<void> {
    const { offset, lengthBytes } = change;
    const { interposers, dirtyBitmaps } = this.#node;
    return interposed(interposers, change, () =>
      this.inFlight(op, offset, async () => {
        const token = this.#content.enter();
        try {
          dirtyBitmaps.mark(offset, lengthBytes);
          await run();
        } finally {
          this.#content.leave(token);
        }
      }),
    );
  }

  /** A change of where content lies, which stays what it is. Errors: those of `run`, with the node and the place. */
  async inFlight(op: string, offset: GuestOffset, run: () => Promise<void>): Promise<void> {
    const { epochs, flushMark } = this.#node;
    const token = epochs.enter();
    flushMark.changeBegins();
    try {
      await run();
    } catch (error) {
      throw inContext(this.#node, error, op, offset);
    } finally {
      flushMark.changeEnded();
      epochs.leave(token);
    }
  }

  /** A change of more than content, drained where `driver.ts` says so: it is none of the requests in flight. Errors: as `inFlight`. */
  async ofWhole(op: string, run: () => Promise<void>): Promise<void> {
    const { flushMark } = this.#node;
    flushMark.changeBegins();
    try {
      await run();
    } catch (error) {
      throw inContext(this.#node, error, op, guestOffset(0));
    } finally {
      flushMark.changeEnded();
    }
  }
}
