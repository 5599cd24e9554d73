/** What `status` shows of a view. */
import type { Node } from '../../src/block/node.ts';
import type { ViewStatus } from './catalog-options.ts';
import type { CatalogEntry } from './entry-table.ts';
import { isElsewhere } from './stand-ins.ts';

export const statusOf = async (entry: CatalogEntry): Promise<ViewStatus> => {
  const { inspection, host } = entry;
  const standIn = 'candidate' in entry ? (entry.candidate.standIn ?? null) : null;
  return {
    name: entry.name,
    path: host.path,
    standsInFor:
      standIn?.missing === null && isElsewhere(standIn.record) ? standIn.record.original : null,
    format: inspection.driver?.name ?? null,
    ...(await entry.sizes()),
    chain: inspection.chain.map(({ path, format }) => ({ path, format })),
    readOnlyReason: entry.readOnlyReason,
    error: (('refusal' in entry ? entry.refusal : null) ?? entry.error)?.toWire() ?? null,
    open: entry.isOpen,
    active: !('image' in entry ? entry.image : entry).isInactive,
    handles: entry.handles,
    metadataBytes: metadataBytesOf(entry.view.root),
  };
};

const metadataBytesOf = (root: Node | null): number => {
  let bytes = 0;
  for (let node = root; node !== null; node = node.backing)
    bytes += node.isOpen ? (node.driver.metadataBytes ?? 0) : 0;
  return bytes;
};
