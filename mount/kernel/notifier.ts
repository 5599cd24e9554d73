/**
 * Notifications to the kernel, sent by a thread of their own: they can block on locks that are held by requests which
 * wait for this process, so neither the control plane nor a worker may send one.
 */
import { Worker } from 'node:worker_threads';
import type { ByteRange } from '../../src/base/range.ts';
import { ROOT_NODE_ID } from '../directory.ts';
import { NOTIFY, OUT_HEADER_BYTES } from './abi.ts';

/** A message of the kernel's notification protocol (`fuse_out_header` with unique 0 and the code as error). */
const notification = (code: number, body: Uint8Array): Uint8Array => {
  const bytes = new Uint8Array(OUT_HEADER_BYTES + body.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setInt32(4, code, true);
  bytes.set(body, OUT_HEADER_BYTES);
  return bytes;
};

/** Asks the kernel to repeat what an engine before this one left unanswered. Written before any worker reads. */
export const resendRequest = (): Uint8Array => notification(NOTIFY.RESEND, new Uint8Array(0));

/** One notification on its way to the kernel. */
export interface Notification {
  readonly number: number;
  readonly bytes: Uint8Array;
}

export type Notifications = Pick<Notifier, 'nameChanged' | 'contentChanged' | 'close'>;

export class Notifier {
  readonly #thread: Worker;
  readonly #ended: Promise<void>;
  /** Called when the kernel has taken the notification of this number. */
  readonly #taken = new Map<number, () => void>();
  #next = 0;

  constructor(descriptor: number) {
    this.#thread = new Worker(new URL('./notify-worker.js', import.meta.url), {
      workerData: { descriptor },
    });
    this.#ended = new Promise((resolve) => this.#thread.once('exit', () => resolve()));
    this.#thread.once('error', () => undefined);
    this.#thread.on('message', (number: number) => this.#settle(number));
    // What the thread leaves behind is nobody's to wait for: the mount is gone.
    this.#thread.once('exit', () => {
      for (const number of [...this.#taken.keys()]) this.#settle(number);
    });
  }

  /** The name is gone, or stands for another file: FUSE_NOTIFY_INVAL_ENTRY. */
  nameChanged(name: string): void {
    const text = Buffer.from(name);
    const body = new Uint8Array(16 + text.length + 1);
    const view = new DataView(body.buffer);
    view.setBigUint64(0, BigInt(ROOT_NODE_ID), true);
    view.setUint32(8, text.length, true);
    body.set(text, 16);
    void this.#send(notification(NOTIFY.INVAL_ENTRY, body));
  }

  /**
   * What the kernel keeps of a view's content, or of a range of it, is old: FUSE_NOTIFY_INVAL_INODE. Resolves when the kernel
   * has written what is dirty, by requests to us, and dropped all.
   */
  contentChanged(nodeId: number, range: ByteRange | null = null): Promise<void> {
    const body = new Uint8Array(24);
    const view = new DataView(body.buffer);
    view.setBigUint64(0, BigInt(nodeId), true);
    view.setBigInt64(8, BigInt(range?.start ?? 0), true);
    view.setBigInt64(16, BigInt(range === null ? 0 : range.end - range.start), true);
    return this.#send(notification(NOTIFY.INVAL_INODE, body));
  }

  #send(bytes: Uint8Array): Promise<void> {
    const number = this.#next++;
    const taken = new Promise<void>((resolve) => this.#taken.set(number, resolve));
    this.#thread.postMessage({ number, bytes } satisfies Notification);
    return taken;
  }

  #settle(number: number): void {
    this.#taken.get(number)?.();
    this.#taken.delete(number);
  }

  /** After the mount is gone: what was blocked has returned. */
  async close(): Promise<void> {
    this.#thread.postMessage(null);
    await this.#ended;
  }
}
