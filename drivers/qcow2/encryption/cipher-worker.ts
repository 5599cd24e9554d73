/** A thread that encrypts and decrypts; see cipher-pool.ts. It knows nothing of images. */
import { parentPort } from 'node:worker_threads';
import { type CipherSpec, SectorCipher } from './sector-cipher.ts';

/** What the pool sends. The bytes come with the message, and go back with the answer. */
export type CipherMessage =
  | { readonly type: 'cipher'; readonly cipher: number; readonly spec: CipherSpec }
  | { readonly type: 'forget'; readonly cipher: number }
  | {
      readonly type: 'job';
      readonly cipher: number;
      readonly job: number;
      readonly direction: 'encrypt' | 'decrypt';
      readonly sector: number;
      readonly bytes: ArrayBuffer;
    };

export interface CipherAnswer {
  readonly job: number;
  readonly bytes: ArrayBuffer;
}

const ciphers = new Map<number, SectorCipher>();

parentPort?.on('message', (message: CipherMessage) => {
  switch (message.type) {
    case 'cipher':
      ciphers.set(message.cipher, new SectorCipher(message.spec));
      return;
    case 'forget':
      ciphers.delete(message.cipher);
      return;
    case 'job': {
      const { job, bytes, direction, sector } = message;
      ciphers.get(message.cipher)?.[direction](sector, new Uint8Array(bytes));
      const answer: CipherAnswer = { job, bytes };
      parentPort?.postMessage(answer, [bytes]);
    }
  }
});
