#!/bin/bash
# Puts the modules of osctl's recipe where bitbake looks for what it has fetched:
#
#	downloads.sh DL_DIR
#
# They come from this machine's module cache; bitbake checks their checksums.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(cd "$here/../.." && go env GOMODCACHE)/cache/download
mkdir -p "$1"
grep -o 'gomod://[^ ]*' "$here/../../meta-kapernikov/recipes-core/osctl/osctl-go-mods.inc" |
	while IFS=';' read -r module version rest; do
		module=${module#gomod://} version=${version#version=} ext=zip
		[[ $rest != mod=1* ]] || ext=mod
		# shellcheck disable=SC2001 # bash cannot make the letter that it found small
		escaped=$(sed 's/[A-Z]/!\L&/g' <<<"$module/@v/$version")
		# The name that bitbake/lib/bb/fetch2/gomod.py gives it.
		cp -n "$cache/$escaped.$ext" "$1/${module//\//.}@$version.$ext"
	done
