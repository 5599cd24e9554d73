/** The notifier's thread; see notifier.ts. */
import { writeSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { present } from '../../src/base/assert.ts';
import type { Notification } from './notifier.ts';

const { descriptor } = workerData as { readonly descriptor: number };
const port = present(parentPort, 'a worker has a parent');

port.on('message', (message: Notification | null) => {
  if (message === null) {
    port.close();
    return;
  }
  try {
    writeSync(descriptor, message.bytes);
  } catch {
    // ENOENT: the kernel does not know the name or the node. ENODEV: the mount is going. Names time out by themselves in a second.
  }
  port.postMessage(message.number);
});
