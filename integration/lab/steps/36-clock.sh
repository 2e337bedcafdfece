# A guest's clock is right after a pause, though KVM's stands still meanwhile.
vm web
echo pause >$V/web/state
sleep 5 # is what the guest must not be behind
echo resume >$V/web/state
right() { [ $(($(date +%s) - $(guest web date +%s))) -le 1 ]; }
within 20 right
