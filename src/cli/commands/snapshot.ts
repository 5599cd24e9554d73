/** `vdiskfs snapshot`: the internal snapshots of an image, or of a view while it is used; and overlays on top of a view's image. */
import { resolve } from 'node:path';
import { BlockError } from '../../base/block-error.ts';
import { QmpError } from '../../control/client.ts';
import { isView } from '../../daemon/mount-table.ts';
import type { SnapshotInfo } from '../../image/info.ts';
import { defineCommand, UsageError } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { declareFormat, declareOffline, type OfflineOptions, offlineContext } from '../offline.ts';
import { declareJson, print, printJson, wantsJson } from '../print.ts';
import { describeSnapshots } from '../snapshot-list.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareFormat(declareJson(declareOffline(yargs)))
      .positional('file', {
        type: 'string',
        demandOption: true,
        describe: 'Image, or the path of a view in a mount',
      })
      .option('list', {
        alias: 'l',
        type: 'boolean',
        defaultDescription: 'unless another is given',
        describe: 'Show the snapshots',
      })
      .option('create', {
        alias: 'c',
        type: 'string',
        requiresArg: true,
        describe: 'Keep what the image is now under this name',
      })
      .option('apply', {
        alias: 'a',
        type: 'string',
        requiresArg: true,
        describe: 'Put the image back to a snapshot, by id or name; what it is now is lost',
      })
      .option('delete', {
        alias: 'd',
        type: 'string',
        requiresArg: true,
        describe: 'Delete a snapshot by name, and free what nothing else uses',
      })
      .option('external', {
        type: 'string',
        requiresArg: true,
        describe:
          'Put this new qcow2 overlay on top of a view, whose image is only read from then on',
      })
      .option('force', {
        type: 'boolean',
        default: false,
        describe: 'Apply to a view also while somebody may have it open for writing',
      })
      .example('$0 snapshot -c before-upgrade disk.qcow2', 'Make one')
      .example('$0 snapshot -a before-upgrade disk.qcow2', 'Go back to it'),
  run: async (options) => {
    const action = actionOf(options);
    if (action.kind === 'external') return putOverlay(options.file, action.path);
    const found = (await isView(options.file))
      ? await onView(options.file, action, options.force)
      : await onImage(options, action);
    if (wantsJson(options)) await printJson(action.kind === 'list' ? found : found[0]);
    else if (action.kind === 'list' && found.length > 0)
      await print(`${describeSnapshots(found).join('\n')}\n`);
    return EXIT.success;
  },
});

type InternalAction =
  | { readonly kind: 'list' }
  | { readonly kind: 'create' | 'apply' | 'delete'; readonly name: string };

type Action = InternalAction | { readonly kind: 'external'; readonly path: string };

const actionOf = (options: {
  readonly list?: boolean | undefined;
  readonly create?: string | undefined;
  readonly apply?: string | undefined;
  readonly delete?: string | undefined;
  readonly external?: string | undefined;
}): Action => {
  const actions: Action[] = options.list === true ? [{ kind: 'list' }] : [];
  for (const kind of ['create', 'apply', 'delete'] as const) {
    const name = options[kind];
    if (name !== undefined) actions.push({ kind, name });
  }
  if (options.external !== undefined) actions.push({ kind: 'external', path: options.external });
  if (actions.length > 1) throw new UsageError('one of -l, -c, -a, -d and --external is meant');
  return actions[0] ?? { kind: 'list' };
};

/** The list, or the one snapshot that was made, applied or deleted. */
const onImage = async (
  options: OfflineOptions & { readonly file: string; readonly format?: string | undefined },
  action: InternalAction,
): Promise<readonly SnapshotInfo[]> => {
  const { listSnapshots, createSnapshot, applySnapshot, deleteSnapshot } = await import(
    '../../image/snapshot.ts'
  );
  const image = { path: options.file, format: options.format ?? null };
  const context = await offlineContext(options);
  switch (action.kind) {
    case 'list':
      return listSnapshots(image, context);
    case 'create':
      return [await createSnapshot(image, action.name, context)];
    case 'apply':
      return [await applySnapshot(image, action.name, context)];
    case 'delete':
      return [await deleteSnapshot(image, action.name, context)];
  }
};

const onView = async (
  path: string,
  action: InternalAction,
  force: boolean,
): Promise<readonly SnapshotInfo[]> => {
  const { connectToDevice } = await import('../mounted-device.ts');
  const { client, device } = await connectToDevice(path);
  try {
    if (action.kind === 'list')
      return (await client.execute('__vdiskfs_snapshots', { device })) as readonly SnapshotInfo[];
    const given = { device, action: action.kind, name: action.name, force };
    return [(await client.execute('__vdiskfs_snapshot', given)) as SnapshotInfo];
  } catch (error) {
    if (!(error instanceof QmpError)) throw error;
    throw new BlockError({ kind: 'bad-request', message: error.message, path, op: 'snapshot' });
  } finally {
    client.close();
  }
};

const putOverlay = async (view: string, file: string): Promise<number> => {
  const { connectToDevice } = await import('../mounted-device.ts');
  const { refuseExisting } = await import('../new-file.ts');
  const overlay = resolve(file);
  await refuseExisting(overlay, 'snapshot');
  const { client, device } = await connectToDevice(view);
  try {
    const given = { device, 'snapshot-file': overlay };
    await client.execute('blockdev-snapshot-sync', given);
    return EXIT.success;
  } catch (error) {
    if (!(error instanceof QmpError)) throw error;
    const { message } = error;
    throw new BlockError({ kind: 'bad-request', message, path: view, op: 'snapshot' });
  } finally {
    client.close();
  }
};
