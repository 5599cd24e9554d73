/** The bytes of a socket, taken in pieces of a length that the taker knows; no more is read than a socket's buffer beside it. */
import type { Socket } from 'node:net';
import { ConnectionLost } from './protocol.ts';

export class ByteSource {
  readonly #socket: Socket;
  #rest: Buffer | null = null;
  #wake: (() => void) | null = null;
  #ended: ConnectionLost | null = null;
  /** Bytes taken so far. */
  receivedBytes = 0;

  constructor(socket: Socket) {
    this.#socket = socket;
    const wake = (): void => {
      this.#wake?.();
      this.#wake = null;
    };
    const end = (message: string): void => {
      this.#ended ??= new ConnectionLost(message);
      wake();
    };
    socket.on('readable', wake);
    socket.on('end', () => end('the server has closed the connection'));
    socket.on('error', (error) => end(error.message));
    socket.on('close', () => end('the connection is closed'));
  }

  /** Fills the whole target; one caller at a time. Errors: ConnectionLost. */
  async fill(target: Uint8Array): Promise<void> {
    for (let done = 0; done < target.length; ) {
      const piece = this.#rest ?? (this.#socket.read() as Buffer | null);
      this.#rest = null;
      if (piece === null) {
        if (this.#ended !== null) throw this.#ended;
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        continue;
      }
      const taken = Math.min(piece.length, target.length - done);
      target.set(piece.subarray(0, taken), done);
      if (taken < piece.length) this.#rest = piece.subarray(taken);
      done += taken;
      this.receivedBytes += taken;
    }
  }

  /** A new buffer of this length, which the caller has checked against a bound. */
  async take(lengthBytes: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(lengthBytes);
    await this.fill(bytes);
    return bytes;
  }
}
