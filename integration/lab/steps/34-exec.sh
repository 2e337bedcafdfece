# Commands in a guest and its files, by vsock.
vm web
status=0
banger exec web -- sh -c 'echo out; echo err >&2; exit 7' >$LAB/out 2>$LAB/err || status=$?
is '7 out err' echo "$status $(cat $LAB/out) $(cat $LAB/err)"
is 'HELLO' sh -c 'echo hello | banger exec -i web -- tr a-z A-Z'
is 124 sh -c 'banger exec --timeout 2s web -- sleep 60 >/dev/null 2>&1; echo $?'

head -c 4M /dev/urandom >$LAB/bytes
banger cp $LAB/bytes web:/root/bytes
is "$(sha256sum <$LAB/bytes)" guest web sh -c 'sha256sum </root/bytes'
banger cp web:/root/bytes $LAB/back
cmp $LAB/bytes $LAB/back
cmp $LAB/bytes $V/web/fs/root/bytes
echo written >$V/web/fs/root/file
is written guest web cat /root/file
guest web rm /root/bytes
refused test -e $V/web/fs/root/bytes

# began COMMAND: the median time of five, in milliseconds.
took() {
	for _ in 1 2 3 4 5; do
		local t=$(date +%s%N)
		"$@" >/dev/null
		echo $((($(date +%s%N) - t) / 1000000))
	done | sort -n | sed -n 3p
}
note "exec: $(took banger exec web -- true) ms; health: $(took cat $V/web/health) ms; list: $(took cat $M/list) ms"
