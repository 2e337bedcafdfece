# The unit is confined as far as VMMs allow: options that give it mounts of its own would hide
# /run/banger from everyone else.
exposed=$(systemd-analyze security --no-pager bangerd |
	sed -n 's/.* exposure level for bangerd.service: \([0-9.]*\).*/\1/p')
note "systemd-analyze security: $exposed"
awk -v e="$exposed" 'BEGIN { exit !(e > 0 && e <= 6.5) }' || fail "exposure $exposed"
is process systemctl show -P KillMode bangerd
is yes systemctl show -P NoNewPrivileges bangerd
