/** What keeps bytes that a file grows by from being cut off, with the space that was taken ahead of them or by a punch beside them. */
import type { Mutation } from './mutations.ts';

const file = 'drivers/file/space-ahead.js';
const tests = ['test/unit/drivers/file/space-ahead.test.js'];

export const AHEAD_MUTATIONS: readonly Mutation[] = [
  {
    step: 'space ahead is given back when no write that makes the file longer is in flight',
    file,
    find: 'if (this.#growers > 0)',
    replace: 'if (false)',
    tests,
  },
  {
    step: 'what makes a file longer waits until its space ahead was given back',
    file,
    find: 'while (this.#givingBack !== null)',
    replace: 'while (false)',
    tests,
  },
  {
    step: 'a write at once makes no file longer whose space ahead is given back',
    file,
    find: 'return this.#givingBack === null;',
    replace: 'return true;',
    tests,
  },
  {
    step: 'workers do not get places past the end of a file that has space ahead',
    file,
    find: 'if (!isInside && (this.#holds || this.#givingBack !== null))',
    replace: 'if (false)',
    tests,
  },
  {
    step: 'a file that workers may make longer has no space taken ahead',
    file,
    find: 'this.#givingBack !== null || this.#lentTo > lengthBytes)',
    replace: 'this.#givingBack !== null)',
    tests,
  },
  {
    step: 'no space is taken ahead while it is given back',
    file,
    find: 'if (this.#isOff || this.#givingBack !== null || ',
    replace: 'if (this.#isOff || ',
    tests,
  },
  {
    step: 'what is free is known before space is taken ahead of a file on tmpfs',
    file,
    find: 'if (this.#untilFreeIsAsked <= 0) {',
    replace: 'if (false) {',
    tests,
  },
  {
    step: 'a file that workers may make longer is not cut off at its end',
    file,
    find: 'if (this.#lentTo > size)',
    replace: 'if (false)',
    tests,
  },
  {
    step: 'a file is not cut while its space ahead is given back',
    file: 'drivers/file/file-length.js',
    find: 'await (this.#ahead === null ? cut() : this.#ahead.grow(cut));',
    replace: 'await cut();',
    tests,
  },
  {
    step: 'a punch past the end truncates nothing, where there is no fallocate',
    file: 'drivers/file/holes.js',
    find: 'await this.#write(end - 1, new Uint8Array(1));',
    replace: 'await this.#length.resize(end);',
    tests: ['test/unit/drivers/file/growth.test.js'],
  },
];
