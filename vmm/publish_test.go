package vmm

import (
	"errors"
	"net/netip"
	"testing"
)

func TestParsePublications(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"8080:80", "127.0.0.1:8080:80/tcp"},
		{" 8080:80/udp \n\n", "127.0.0.1:8080:80/udp"},
		{"127.0.0.1:8080:80/tcp", "127.0.0.1:8080:80/tcp"},
		{"0.0.0.0:08080:80", "0.0.0.0:8080:80/tcp"},
		{"[::1]:8080:80/tcp", "[::1]:8080:80/tcp"},
		{"[0:0::1]:8080:80", "[::1]:8080:80/tcp"},
		{"[::ffff:10.0.0.1]:8080:80", "10.0.0.1:8080:80/tcp"},
		{"8080:80\n8080:80/udp\n[::]:8080:80",
			"127.0.0.1:8080:80/tcp\n127.0.0.1:8080:80/udp\n[::]:8080:80/tcp"},
		{"", ""},
	} {
		got, err := ParsePublications(c.in)
		if err != nil || formatPublications(got) != c.want {
			t.Errorf("%q: %q, %v, want %q", c.in, formatPublications(got), err, c.want)
		}
		again, err := ParsePublications(c.want)
		if err != nil || formatPublications(again) != c.want {
			t.Errorf("%q is not what it reads as: %q, %v", c.want, formatPublications(again), err)
		}
	}
	for _, in := range []string{
		"80", "8080:", ":80", "8080:0", "0:80", "8080:65536", "-1:80", "8080:80/sctp", "8080:80/",
		"localhost:8080:80", "::1:8080:80", "[::1]8080:80", "[127.0.0.1]:8080:80",
		"[fe80::1%eth0]:8080:80", "224.0.0.1:8080:80", "a b", "8080:80 x", "8080:80\n8080:81",
		"0.0.0.0:80:80\n80:80",
	} {
		if got, err := ParsePublications(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func TestHostAddress(t *testing.T) {
	network := netip.MustParsePrefix("10.1.2.3/20")
	for text, want := range map[string]bool{
		"127.0.0.1": true, "0.0.0.0": true, "::": true, "::1": true, "10.1.2.3": true,
		"169.254.1.1": true, "2001:db8::1": true, "10.1.0.255": true,
		"255.255.255.255": false, "0.1.2.3": false, "240.0.0.1": false, "224.0.0.1": false,
		"ff02::1": false, "fe80::1": false, "10.1.15.255": false,
	} {
		got := hostAddress(netip.MustParseAddr(text), []netip.Addr{lastOf(network)})
		if got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func FuzzParsePublications(f *testing.F) {
	f.Add("127.0.0.1:8080:80/tcp\n[::1]:5353:53/udp")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := ParsePublications(text)
		if err != nil {
			return
		}
		again, err := ParsePublications(formatPublications(all))
		if err != nil || formatPublications(again) != formatPublications(all) {
			t.Fatalf("%q reads as %v and then as %v, %v", text, all, again, err)
		}
	})
}

func TestClaims(t *testing.T) {
	parse := func(s string) []Publication {
		all, err := ParsePublications(s)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	c := claims{of: map[uint64][]Publication{}}
	name := func(uint64) string { return "web" }
	c.set(1, parse("0.0.0.0:8080:80"))
	for _, x := range []struct {
		lines string
		taken bool
	}{
		{"8080:1", true}, {"10.0.0.1:8080:80", true}, {"8080:80/udp", false},
		{"[::1]:8080:80", false}, {"8081:80\n8080:80", true}, {"8082:80", false},
	} {
		err := c.take(2, parse(x.lines), name)
		if got := errors.Is(err, ErrAddressInUse); got != x.taken || (err != nil) != x.taken {
			t.Errorf("%q: %v", x.lines, err)
		}
		c.set(2, nil)
	}
	if err := c.take(1, parse("8080:81"), name); err != nil {
		t.Errorf("its own: %v", err)
	}
	c.set(1, nil)
	if err := c.take(2, parse("8080:80"), name); err != nil {
		t.Errorf("given up: %v", err)
	}
}
