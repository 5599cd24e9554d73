#!/usr/bin/env bash
# `npm test` and `npm run soak`: set-up, lint, types, then all tests. Arguments go to the runner.
set -euo pipefail
cd "$(dirname "$0")/../.."
bash test/setup/prepare.sh
npm run --silent lint
exec node dist/test/runner/main.js "$@"
