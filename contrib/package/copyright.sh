#!/bin/sh
# Prints the licences of programs: banger's own, and those of the modules that are linked into them.
#
#   copyright.sh PROGRAM ...
set -eu
cd "$(dirname "$0")/../.."
go=${GO:-go}
cat <<END
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: banger

Files: *
Copyright: The banger maintainers
License: Apache-2.0

License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0. It is also below.

The programs are linked statically. Below are the licences of all modules that they contain.
END
section() {
	printf '\n======== %s\n\n' "$1"
	cat "$2"
}
section banger LICENSE
"$go" version -m "$@" | awk '$1 == "dep" { print $2 "@" $3 }' | sort -u | while read -r module; do
	dir=$("$go" list -m -f '{{.Dir}}' "${module%@*}")
	found=
	for file in "$dir"/LICEN[CS]E* "$dir"/COPYING* "$dir"/NOTICE*; do
		[ -f "$file" ] || continue
		section "$module" "$file"
		found=1
	done
	if [ -z "$found" ]; then
		echo "copyright.sh: $module has no licence" >&2
		exit 1
	fi
done
section "the Go standard library" "$("$go" env GOROOT)/LICENSE"
