#!/bin/sh
# chromium.sh BIN: sees to a Chromium for the browser tests, if one can be had; never fails.
# Without one those tests are skipped and say why.
bin=$1
for name in "${STEPWISE_CHROMIUM:-}" chromium chromium-browser google-chrome; do
    [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 && exit 0
done
path=$("$bin/python" -c 'from playwright.sync_api import sync_playwright as p
with p() as play: print(play.chromium.executable_path)' 2>/dev/null)
[ -x "$path" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "test: installing Debian's chromium for the browser tests"
    if (apt-get update && apt-get install -y --no-install-recommends chromium) >/dev/null 2>&1; then
        exit 0
    fi
fi
echo "test: downloading Playwright's Chromium for the browser tests"
"$bin/python" -m playwright install chromium >/dev/null 2>&1 ||
    echo "test: no Chromium to be had; the browser tests will be skipped"
exit 0
