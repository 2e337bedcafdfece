# Guests reach each other by name when both are willing, and no earlier.
vm web
vm db
serve web
echo 1 >$V/web/isolate
echo 1 >$V/db/isolate
# wget -T of a static busybox crashes on names.
fetch() { guest db timeout 5 wget -qO- http://web/; }
refused fetch
echo 0 >$V/web/isolate
refused fetch
echo 0 >$V/db/isolate
is 'I am web' fetch
refused guest db ping -c 1 -W 2 "$(hostname -I | cut -d' ' -f1)"
echo 1 >$V/web/isolate
refused fetch
