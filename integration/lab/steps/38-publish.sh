# A published port, on the loopback of the host only.
vm web
serve web
echo 127.0.0.1:8080:80/tcp >$V/web/publish
is 'I am web' curl -s --max-time 20 http://127.0.0.1:8080/
refused curl -s --max-time 5 "http://$(hostname -I | cut -d' ' -f1):8080/"
echo >$V/web/publish
refused curl -s --max-time 5 http://127.0.0.1:8080/
