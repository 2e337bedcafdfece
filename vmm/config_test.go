package vmm

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckName(t *testing.T) {
	for name, want := range map[string]error{
		"a": nil, "0": nil, "web": nil, "a-b": nil, "a--b": nil, "9z": nil,
		"": ErrInvalid, ".": ErrInvalid, "..": ErrInvalid, "-": ErrInvalid, "-a": ErrInvalid,
		"a-": ErrInvalid, "A": ErrInvalid, "a.b": ErrInvalid, "a_b": ErrInvalid, "a b": ErrInvalid,
		"grün": ErrInvalid, "a/b": ErrInvalid, "a\x00": ErrInvalid, "a\n": ErrInvalid,
		strings.Repeat("a", 63): nil,
		strings.Repeat("a", 64): ErrNameTooLong, strings.Repeat("A", 64): ErrNameTooLong,
	} {
		if err := CheckName(name); !errors.Is(err, want) {
			t.Errorf("%q: %v, not %v", name, err, want)
		}
	}
}

// TestCheckVMName refuses names that stand for something else, and no others.
func TestCheckVMName(t *testing.T) {
	for name, want := range map[string]error{
		"web": nil, "test": nil, "example": nil, "host": nil, "dns": nil, "router": nil,
		"localhost": ErrInvalid, "invalid": ErrInvalid, "local": ErrInvalid, "onion": ErrInvalid,
		"gateway": ErrInvalid, "wpad": ErrInvalid, "isatap": ErrInvalid, "ip6-loopback": ErrInvalid,
		"_gateway": ErrInvalid, strings.Repeat("a", 64): ErrNameTooLong,
	} {
		if err := CheckVMName(name); !errors.Is(err, want) {
			t.Errorf("%q: %v, not %v", name, err, want)
		}
	}
}

func TestAuthorizedKeys(t *testing.T) {
	for lines, want := range map[string]error{
		"":                         nil,
		"ssh-ed25519":              ErrInvalid,
		strings.Repeat("#\n", 2e4): ErrTooBig,
	} {
		if err := checkAuthorizedKeys(lines); !errors.Is(err, want) {
			t.Errorf("%.20q: %v, not %v", lines, err, want)
		}
	}
}
