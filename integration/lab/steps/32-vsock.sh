# The agent is reached by AF_VSOCK, by the daemon alone.
vm web
within 30 grep -q 'msg="vsock leads to the agent" vm=web' <(journalctl -u bangerd -o cat --no-pager)
cid=$(cids)
matches '^[0-9]+$' echo "$cid"
[ "$cid" -ge 65536 ] || fail "its address is $cid"
matches "cid=$cid\$" sh -c 'journalctl -u bangerd -o cat --no-pager | grep "vsock leads"'

# Strangers get no answer, whoever they are.
for port in 1023 1024; do
	for user in root nobody; do
		got=$(printf 'GET /ping HTTP/1.1\r\nHost: agent\r\n\r\n' |
			runuser -u $user -- timeout 20 socat -t 15 - VSOCK-CONNECT:$cid:$port | tr -d '\0' || :)
		[[ $got != *HTTP* && ${#got} -le 32 ]] || fail "port $port answers $user: $got"
	done
done
is healthy cat $V/web/health

# What the suite skips where the kernel has no vsock.
modprobe vsock_loopback
for test in qemu agent; do
	(cd "$LAB" && ./$test.test -test.v -test.run '^(TestClaimCID|TestLoopback)$') >"$LAB/$test.log" 2>&1 ||
		fail "$(cat "$LAB/$test.log")"
	grep -- '--- PASS' "$LAB/$test.log" || fail "$(cat "$LAB/$test.log")"
done
