/** What a mount puts over an image: a view that guests write through. */
import { silentLog } from '../../src/base/log.ts';
import type { Graph, OpenImageOptions } from '../../src/block/graph.ts';
import { View } from '../../src/block/view.ts';

/** It is not open yet. `name`: as errors and the log call it. */
export const imageView = (
  graph: Graph,
  image: Omit<OpenImageOptions, 'readOnly'>,
  name = 'disk.raw',
): View =>
  new View({
    name,
    readOnlyReason: null,
    allowShrink: false,
    log: silentLog,
    open: () => graph.open({ ...image, readOnly: false }),
    close: (root) => graph.close(root),
  });
