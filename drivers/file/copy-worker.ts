/** A thread of `CopyThreads`: copies one range after the other. */
import { parentPort } from 'node:worker_threads';
import { assert } from '../../src/base/assert.ts';
import { type CopyTask, runCopyTask } from './copy-task.ts';

assert(parentPort !== null, 'this is a thread');
const port = parentPort;
port.on('message', (task: CopyTask) => port.postMessage(runCopyTask(task)));
port.postMessage('ready');
