/**
 * The doorbell: a pipe that workers write one byte to when the control plane sleeps. The reading end lies in libuv's
 * poll set, so a ring costs a thread wake-up and nothing else (figures in ARCHITECTURE.md), and it keeps the event loop
 * alive while the mount lives.
 */
import { closeSync, writeSync } from 'node:fs';
import { Socket } from 'node:net';
import { openPipe } from '../../src/os/descriptors.ts';

const RING = Uint8Array.of(1);

export class Doorbell {
  /** For the workers; see `ringDoorbell`. */
  readonly writeEnd: number;
  readonly #socket: Socket;

  constructor(onRing: () => void) {
    const { readEnd, writeEnd } = openPipe();
    this.writeEnd = writeEnd;
    const onread = {
      buffer: new Uint8Array(4096),
      callback: (): boolean => {
        onRing();
        return true;
      },
    };
    this.#socket = new Socket({ fd: readEnd, readable: true, writable: false, onread } as object);
    this.#socket.on('error', onRing);
    this.#socket.read();
  }

  /** After the last worker has ended. */
  close(): void {
    this.#socket.destroy();
    closeSync(this.writeEnd);
  }
}

/** Rings; a full pipe has rung already. */
export const ringDoorbell = (writeEnd: number): void => {
  try {
    writeSync(writeEnd, RING);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
  }
};
