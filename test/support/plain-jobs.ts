/** Jobs with everything as it is by default, for tests that look at one thing of them. */
import type { Graph } from '../../src/block/graph.ts';
import type { Node } from '../../src/block/node.ts';
import type { View } from '../../src/block/view.ts';
import { Backup, type BackupOptions } from '../../src/job/backup.ts';
import { BackupTarget } from '../../src/job/backup-target.ts';
import { Commit } from '../../src/job/commit.ts';

export interface LayeredView {
  readonly graph: Graph;
  readonly view: View;
  readonly root: Node;
  readonly mid: Node;
  readonly base: Node;
}

/** Of the layer between the image and its base, both of which lie in one directory. */
export const plainCommit = ({ graph, view, root, mid, base }: LayeredView): Commit =>
  new Commit({
    view,
    overlay: root,
    layers: [mid],
    base,
    link: { filename: 'base', format: 'qcow2' },
    onError: 'report',
    reopen: async () => {
      await graph.close(root);
      view.swapRoot(await graph.open({ path: root.path, format: 'qcow2', readOnly: false }));
    },
    ended: async () => undefined,
  });

/** A full one; `begin` is called in a drained section. */
export const plainBackup = (
  { view, root, target }: { readonly view: View; readonly root: Node; readonly target: Node },
  options: Partial<BackupOptions> = {},
): Backup =>
  new Backup({
    jobId: 'job',
    view,
    root,
    target: new BackupTarget({ node: target, compress: false, leavesZeroesOut: false }),
    sync: 'full',
    bitmap: null,
    onSourceError: 'report',
    onTargetError: 'report',
    onCbwError: 'break-snapshot',
    ended: async () => undefined,
    ...options,
  });
