#!/bin/sh
# Copies what `make build man completions` made to where it belongs: `make install`, and the content
# of the packages. An /etc/banger/config.toml that is there stays.
#
#   DESTDIR  in front of all paths, for a package; empty
#   PREFIX   /usr/local
#   SYSCONF  /etc
#   ZSH      the directory of zsh's completions, $PREFIX/share/zsh/site-functions
#   FORMAT   deb or rpm: also the licence and the changes where that format wants them
set -eu
cd "$(dirname "$0")/../.."
umask 022
prefix=${PREFIX:-/usr/local} sysconf=${SYSCONF:-/etc}
zsh=${ZSH:-$prefix/share/zsh/site-functions}
man=$prefix/share/man
units=$prefix/lib/systemd

# One line per file: its mode, where it is now, where it belongs. ".gz" behind the mode: compressed.
files="
755 bin/bangerd $prefix/bin/bangerd
755 bin/banger $prefix/bin/banger
755 bin/banger-agent $prefix/lib/banger/banger-agent
755 contrib/package/end.sh $prefix/lib/banger/end
644.gz bin/man/banger.1 $man/man1/banger.1
644.gz bin/man/banger.5 $man/man5/banger.5
644.gz bin/man/bangerd.8 $man/man8/bangerd.8
644 bin/completions/bash $prefix/share/bash-completion/completions/banger
644 bin/completions/zsh $zsh/_banger
644 bin/completions/fish $prefix/share/fish/vendor_completions.d/banger.fish
644 contrib/package/bangerd.service $units/system/bangerd.service
644 contrib/package/banger@.service $units/system/banger@.service
644 contrib/package/bangerd-user.service $units/user/bangerd.service
644 contrib/package/sysusers.conf $prefix/lib/sysusers.d/banger.conf
644 contrib/package/tmpfiles.conf $prefix/lib/tmpfiles.d/banger.conf
644 contrib/package/modules.conf $prefix/lib/modules-load.d/banger.conf
644 contrib/package/config.toml $sysconf/banger/config.toml
644 contrib/alerts.yml $prefix/share/doc/banger/contrib/alerts.yml
644 contrib/grafana.json $prefix/share/doc/banger/contrib/grafana.json
644 contrib/prometheus.yml $prefix/share/doc/banger/contrib/prometheus.yml
644 README.md $prefix/share/doc/banger/README.md
644 SECURITY.md $prefix/share/doc/banger/SECURITY.md
$(for page in docs/*.md; do echo "644 $page $prefix/share/doc/banger/$page"; done)
$(find examples -type f | while read -r example; do
	mode=644
	[ ! -x "$example" ] || mode=755
	echo "$mode $example $prefix/share/doc/banger/$example"
done)
"
case ${FORMAT-} in
deb)
	files="$files
644 bin/copyright $prefix/share/doc/banger/copyright
644.gz CHANGELOG.md $prefix/share/doc/banger/CHANGELOG.md.gz"
	;;
rpm)
	files="$files
644 bin/copyright $prefix/share/licenses/banger/LICENSE
644 CHANGELOG.md $prefix/share/doc/banger/CHANGELOG.md"
	;;
*) files="$files
644 CHANGELOG.md $prefix/share/doc/banger/CHANGELOG.md
644 LICENSE $prefix/share/doc/banger/LICENSE" ;;
esac

# Units and the like name the programs where the packages have them.
copy=$(mktemp)
trap 'rm -f "$copy"' EXIT
echo "$files" | while read -r mode from to; do
	case $mode in
	'') continue ;;
	*.gz)
		to=${to%.gz}.gz
		gzip -9n <"$from" >"$copy"
		;;
	*)
		case $from in
		*.service | */end.sh) sed "s|/usr/bin/|$prefix/bin/|" "$from" >"$copy" ;;
		*.toml)
			if [ -e "${DESTDIR-}$to" ]; then
				echo "install.sh: ${DESTDIR-}$to stays as it is"
				continue
			fi
			cat "$from" >"$copy"
			;;
		*) cat "$from" >"$copy" ;;
		esac
		;;
	esac
	install -D -m "${mode%.gz}" "$copy" "${DESTDIR-}$to"
done
