/** What a mount shows is what qemu-img reads, and what is written through it is what qemu-img reads afterwards. */
import assert from 'node:assert/strict';
import { open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { seededRandom } from '../../../src/base/random.ts';
import { sha256 } from '../../support/file-tools.ts';
import { assertClean, assertSameContent, contentSha256, qemuImg } from '../../support/qemu-img.ts';
import { countOf, SEED } from '../../support/run-parameters.ts';
import { makeMatrix } from './image-matrix.ts';
import { type MountSubject, placeOf } from './subject.ts';

const WRITES_PER_IMAGE = countOf(12);

const isQcow2 = (name: string): boolean => name.endsWith('.qcow2');

export const contentTests = (subject: MountSubject): void => {
  test(`every kind of image reads as qemu-img converts it (seed ${SEED})`, async (t) => {
    const place = await placeOf(t, subject);
    await makeMatrix(place.images, SEED);
    const images = (await readdir(place.images)).sort();
    const expected = new Map<string, string>();
    for (const name of images) {
      expected.set(name, await contentSha256(place.image(name), join(place.root, 'flat')));
    }
    const mounted = await place.mount();
    assert.equal((await readdir(mounted.mountpoint)).length, images.length);
    for (const name of images) {
      await t.test(name, async () => {
        assert.equal(await sha256(await viewOf(mounted.mountpoint, name)), expected.get(name));
      });
    }
    await mounted.unmount();
    for (const name of images.filter(isQcow2)) await assertClean(place.image(name));
  });

  test(`writes of any alignment leave what a flat file would hold (seed ${SEED})`, async (t) => {
    const place = await placeOf(t, subject);
    await makeMatrix(place.images, SEED);
    const images = (await readdir(place.images)).filter(isQcow2).sort();
    const modelOf = (name: string): string => join(place.root, `${name}.model`);
    for (const name of images) {
      await qemuImg(['convert', '-O', 'raw', place.image(name), modelOf(name)]);
    }
    const mounted = await place.mount();
    const random = seededRandom(SEED);
    const written: string[] = [];
    for (const name of images) {
      const view = await viewOf(mounted.mountpoint, name);
      if (!(await isWritable(view))) continue;
      const model = modelOf(name);
      await writeBoth(view, model, random);
      assert.equal(await sha256(view), await sha256(model), name);
      written.push(name);
    }
    assert.ok(written.length >= 15, `${written.length} images were written`);
    await mounted.unmount();
    for (const name of written) {
      await assertClean(place.image(name));
      await assertSameContent(place.image(name), modelOf(name));
    }
  });
};

/** The view of an image: by its short name, or by the long one of a clash. */
export const viewOf = async (mountpoint: string, image: string): Promise<string> => {
  const names = await readdir(mountpoint);
  const short = `${image.replace(/\.[^.]*$/, '')}.raw`;
  const long = `${image}.raw`;
  const name = names.includes(long) ? long : short;
  assert.ok(names.includes(name), `${image} has a view among ${names.join(', ')}`);
  return join(mountpoint, name);
};

const isWritable = async (path: string): Promise<boolean> => {
  const file = await open(path, 'r+').catch((error: NodeJS.ErrnoException) => {
    assert.equal(error.code, 'EROFS');
    return null;
  });
  await file?.close();
  return file !== null;
};

const writeBoth = async (
  view: string,
  model: string,
  random: ReturnType<typeof seededRandom>,
): Promise<void> => {
  const files = [await open(view, 'r+'), await open(model, 'r+')];
  try {
    const { size } = (await files[0]?.stat()) ?? { size: 0 };
    for (let i = 0; i < WRITES_PER_IMAGE; i++) {
      const bytes = Buffer.alloc(1 + random.below(150_000));
      if (random.below(4) > 0) random.fill(bytes);
      const offset = random.below(size - bytes.length);
      for (const file of files) await file.write(bytes, 0, bytes.length, offset);
      if (random.below(4) === 0) await files[0]?.sync();
    }
  } finally {
    for (const file of files) await file.close();
  }
};
