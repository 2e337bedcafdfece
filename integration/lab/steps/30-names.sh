# The host finds guests by name through systemd-resolved.
vm web
serve web
within 30 test -s $V/web/dns
matches "^$(cat $V/web/address) +STREAM web.vm" getent ahostsv4 web.vm
matches "web.vm" getent hosts web.vm
is 'I am web' curl -s --max-time 20 http://web.vm/
matches 'http://web.vm:80/' cat $V/web/ports
refused getent hosts none.vm
