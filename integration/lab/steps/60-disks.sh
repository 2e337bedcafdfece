# A disk, a snapshot of the running VM and its restore.
vm db disk 64M
guest db sh -c 'echo before >/work/state; sync'
mkdir $V/db/snapshots/one || fail "$(cat $V/db/error)"
is 1 cat $V/db/snapshots/one/frozen
guest db sh -c 'echo after >/work/state; sync'
began=$(date +%s%N)
echo stop >$V/db/state
note "stop: $((($(date +%s%N) - began) / 1000000)) ms"
echo one >$V/db/restore || fail "$(cat $V/db/error)"
vm db
is before guest db cat /work/state
rmdir $V/db/snapshots/one
