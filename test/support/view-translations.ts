/** What the engine shares with workers that serve one view. */
import type { Entry } from '../../mount/directory.ts';
import { NodeTranslations } from '../../mount/kernel/node-translations.ts';
import type { View } from '../../src/block/view.ts';
import { createSharedTable, type SharedTable } from '../../src/translation/table-layout.ts';
import { TranslationTable } from '../../src/translation/translation-table.ts';

export interface ViewTranslations {
  readonly table: SharedTable;
  /** Workers may answer FSYNCs. */
  readonly translations: NodeTranslations;
  /** No more of it than the translations use. */
  readonly entry: Entry;
}

export const viewTranslations = (view: View, nodeId: number, workers: number): ViewTranslations => {
  const table = createSharedTable({ workers, slots: 4 });
  const wait = { reportAfterMs: 10_000, stuck: () => undefined };
  const translations = new NodeTranslations(new TranslationTable(table, wait), {
    workersSync: true,
  });
  const entry = { nodeId, name: 'disk.raw', view } as unknown as Entry;
  return { table, translations, entry };
};
