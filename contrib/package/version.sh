#!/bin/sh
# Prints the version of this tree, which is one for Debian, RPM and the programs. Of two commits
# the descendant's sorts higher:
#
#   0.1.0                      the tag v0.1.0
#   0.1.0+3.g54ef9a2           three commits after that tag
#   0.1.0~git537.g54ef9a2      commit 537, before the first tag; CHANGELOG.md names the version
#   ….dirty                    with changes that are not committed
#
# Without git it is the version of CHANGELOG.md. A shallow clone cannot count its commits: its 0
# sorts below all others.
set -eu
cd "$(dirname "$0")/../.."
next=$(sed -n 's/^## *v\{0,1\}\([0-9][0-9A-Za-z.]*\).*/\1/p' CHANGELOG.md | head -n 1)
if ! git rev-parse --git-dir >/dev/null 2>&1; then
	echo "$next"
	exit
fi
if tagged=$(git describe --tags --long --match 'v[0-9]*' 2>/dev/null); then
	hash=${tagged##*-} rest=${tagged%-*}
	version=${rest%-*}
	version=$(echo "${version#v}" | tr - '~') # 0.1.0~rc1 of the tag v0.1.0-rc1
	case ${rest##*-} in
	0) ;;
	*) version=$version+${rest##*-}.$hash ;;
	esac
else
	count=$(git rev-list --count HEAD)
	[ "$(git rev-parse --is-shallow-repository)" = false ] || count=0
	version=$next~git$count.g$(git rev-parse --short=7 HEAD)
fi
if ! git diff --quiet HEAD --; then
	version=$version.dirty
fi
echo "$version"
