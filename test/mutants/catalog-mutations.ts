/** What is known of the images in a directory. */
import type { Mutation } from './mutations.ts';

const KNOWLEDGE = ['test/unit/mount/image-knowledge.test.js'];
const SCANS = ['test/unit/mount/catalog-scan-races.test.js', ...KNOWLEDGE];

export const CATALOG_MUTATIONS: readonly Mutation[] = [
  {
    step: 'a scan that has seen a file before we closed it does not take it for another one',
    file: 'mount/catalog/image-knowledge.js',
    find: 'isSame && this.#seenMs >= sinceMs',
    replace: 'false',
    tests: SCANS,
  },
  {
    step: 'what is known of an image since a scan has looked at it stays',
    file: 'mount/catalog/image-knowledge.js',
    find: 'if (this.#inspection === found.inspectionBefore)',
    replace: '',
    tests: SCANS,
  },
  {
    step: 'an image whose chain cannot be read for the moment is still made of what it was made of',
    file: 'mount/catalog/image-knowledge.js',
    find: 'isRead ? inspection : { ...inspection, chain: this.#inspection.chain }',
    replace: 'inspection',
    tests: KNOWLEDGE,
  },
  {
    step: 'a scan that has begun before a pivot changes nothing of what is known of the image after it',
    file: 'mount/catalog/image-knowledge.js',
    find: 'if (isOtherTarget || (isOpen && isOtherFile))',
    replace: 'if (isOpen && isOtherFile)',
    tests: KNOWLEDGE,
  },
  {
    step: 'another file that takes the place of an image is not taken for what we did to it',
    file: 'mount/catalog/image-knowledge.js',
    find: 'if (host?.identity === this.host.identity)',
    replace: 'if (host !== null)',
    tests: KNOWLEDGE,
  },
];
