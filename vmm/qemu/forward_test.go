package qemu

import (
	"fmt"
	"slices"
	"testing"
)

func TestParseForwards(t *testing.T) {
	const text = "Hub -1 (net0):\r\n" +
		"  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n" +
		"  TCP[ESTABLISHED]   14       127.0.0.1  8080       10.0.2.15    80     0     0\r\n" +
		"  TCP[HOST_FORWARD]  12       127.0.0.1  8080       10.0.2.15    80     0     0\r\n" +
		"  UDP[HOST_FORWARD]  13               *  5353       10.0.2.15    53     0     0\r\n" +
		"  TCP[HOST_FORWARD]  99999999\r\n"
	got := fmt.Sprint(parseForwards(text))
	if want := "[127.0.0.1:8080:80/tcp 0.0.0.0:5353:53/udp]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if all := parseForwards(""); !slices.Equal(all, nil) {
		t.Errorf("of nothing: %v", all)
	}
}
