/** The suite of mount tests: one for both backends, by what each can do. */
import { attributeTests } from './suite/attributes.ts';
import { badInputTests } from './suite/bad-input.ts';
import { changeTests } from './suite/changes.ts';
import { contentTests } from './suite/content.ts';
import { dataFileTests } from './suite/data-files.ts';
import { fallocateTests } from './suite/fallocate.ts';
import { fullDiskTests } from './suite/full-disk.ts';
import { ioTests } from './suite/io.ts';
import { sizeTests } from './suite/sizes.ts';
import type { MountSubject } from './suite/subject.ts';

export const mountSuite = (subject: MountSubject): void => {
  contentTests(subject);
  attributeTests(subject);
  sizeTests(subject);
  ioTests(subject);
  if (subject.capabilities.fallocate) fallocateTests(subject);
  dataFileTests(subject);
  changeTests(subject);
  badInputTests(subject);
  fullDiskTests(subject);
};
