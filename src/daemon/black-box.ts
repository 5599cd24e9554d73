/**
 * What a careful engine is doing, in memory that outlives it: after its death the supervisor reads what was in flight.
 *
 *     length u32, JSON: the tasks in the order in which they began
 *
 * A record that is torn by SIGKILL does not parse and counts as empty.
 */
import { readSync, writeSync } from 'node:fs';

/** What an engine can die of. */
export interface Task {
  /** The same for the same work in a later engine: a request's unique, an opening, a look at a file. */
  readonly id: string;
  /** The view that it is for. */
  readonly nodeId: number | null;
  /** The file that it is for, where there is no view yet. */
  readonly path: string | null;
  /** For people. */
  readonly name: string;
}

const MAX_TASKS = 64;
const MAX_BYTES = 1 << 20;

/** The engine's side. */
export class TaskRecorder {
  readonly #descriptor: number;
  readonly #tasks = new Map<string, Task>();

  constructor(descriptor: number) {
    this.#descriptor = descriptor;
    this.#write();
  }

  /** In memory that survives when it returns. Call what it returns when the task has ended. */
  begin(task: Task): () => void {
    this.#tasks.set(task.id, task);
    this.#write();
    return () => {
      this.#tasks.delete(task.id);
      this.#write();
    };
  }

  #write(): void {
    const tasks = [...this.#tasks.values()].slice(-MAX_TASKS);
    const text = Buffer.from(JSON.stringify(tasks));
    const record = Buffer.alloc(4 + text.length);
    record.writeUInt32LE(text.length);
    text.copy(record, 4);
    writeSync(this.#descriptor, record, 0, record.length, 0);
  }
}

/** The supervisor's side: what was in flight, the latest last. */
export const tasksIn = (descriptor: number): readonly Task[] => {
  const head = Buffer.alloc(4);
  if (readSync(descriptor, head, 0, 4, 0) < 4) return [];
  const length = head.readUInt32LE();
  if (length > MAX_BYTES) return [];
  const text = Buffer.alloc(length);
  if (readSync(descriptor, text, 0, length, 4) < length) return [];
  try {
    return JSON.parse(text.toString('utf8')) as Task[];
  } catch {
    return [];
  }
};

/** Before an engine begins: nothing is in flight. */
export const clearTasks = (descriptor: number): void => {
  writeSync(descriptor, Buffer.alloc(4), 0, 4, 0);
};
