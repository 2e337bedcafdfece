package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

func testSecret(t testing.TB) secret {
	t.Helper()
	s, err := newSecret()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shake connects both sides, each with its secret. It returns the bytes that they sent and their
// errors.
func shake(host, agent secret) (toAgent, toHost []byte, hostErr, agentErr error) {
	near, far := net.Pipe()
	done := make(chan error, 1)
	var a, h bytes.Buffer
	go func() {
		done <- agentHandshake(tap{far, &a, &h}, agent)
		far.Close()
	}()
	hostErr = hostHandshake(near, host)
	near.Close()
	agentErr = <-done
	return a.Bytes(), h.Bytes(), hostErr, agentErr
}

// tap records what is read and written.
type tap struct {
	io.ReadWriter
	read, written *bytes.Buffer
}

func (t tap) Read(p []byte) (int, error) {
	n, err := t.ReadWriter.Read(p)
	t.read.Write(p[:n])
	return n, err
}

func (t tap) Write(p []byte) (int, error) {
	n, err := t.ReadWriter.Write(p)
	t.written.Write(p[:n])
	return n, err
}

func TestHandshake(t *testing.T) {
	s := testSecret(t)
	toAgent, toHost, hostErr, agentErr := shake(s, s)
	if hostErr != nil || agentErr != nil {
		t.Fatalf("with one secret: %v, %v", hostErr, agentErr)
	}
	if len(toAgent) != nonceLen+proofLen || len(toHost) != nonceLen+proofLen {
		t.Errorf("%d and %d bytes", len(toAgent), len(toHost))
	}
	if bytes.Contains(append(toAgent, toHost...), s[:]) {
		t.Error("the secret goes over the wire")
	}
	_, toHost, hostErr, agentErr = shake(testSecret(t), s)
	if !errors.Is(agentErr, errUnproved) || hostErr == nil {
		t.Errorf("with another secret: %v, %v", hostErr, agentErr)
	}
	if len(toHost) != nonceLen {
		t.Errorf("a stranger gets %d bytes of the agent", len(toHost))
	}
}

// liar is a far end that sends unread first and then an answer to each message.
type liar struct {
	answer func(heard []byte) []byte
	heard  []byte
	unread []byte
}

func (l *liar) Read(p []byte) (int, error) {
	if len(l.unread) == 0 {
		return 0, io.EOF
	}
	n := copy(p, l.unread)
	l.unread = l.unread[n:]
	return n, nil
}

func (l *liar) Write(p []byte) (int, error) {
	l.heard = append(l.heard, p...)
	l.unread = append(l.unread, l.answer(p)...)
	return len(p), nil
}

// TestForgery plays a peer that has recorded a whole handshake and does not know the secret.
func TestForgery(t *testing.T) {
	s := testSecret(t)
	toAgent, toHost, _, _ := shake(s, s)
	challenge := bytes.Repeat([]byte{1}, nonceLen)
	const end = nonceLen + proofLen
	for name, answer := range map[string]func(said []byte) []byte{
		"replay":        func([]byte) []byte { return toAgent },
		"its nonce":     func(said []byte) []byte { return slices.Concat(said, toAgent[nonceLen:]) },
		"echo":          func(said []byte) []byte { return slices.Concat(said, said) },
		"agent's proof": func([]byte) []byte { return toHost },
		"zeros":         func([]byte) []byte { return make([]byte, end) },
		"HTTP":          func([]byte) []byte { return []byte(strangersPing) },
		"nothing":       func([]byte) []byte { return nil },
	} {
		far := &liar{answer: answer}
		if err := agentHandshake(far, s); err == nil {
			t.Errorf("to the agent, %s: taken", name)
		}
		if len(far.heard) != nonceLen {
			t.Errorf("to the agent, %s: it said %d bytes", name, len(far.heard))
		}
	}
	for name, answer := range map[string]func(said []byte) []byte{
		"replay":     func([]byte) []byte { return toHost[nonceLen:] },
		"reflection": func(said []byte) []byte { return said[nonceLen:] },
		"its nonce":  func(said []byte) []byte { return said[:nonceLen] },
		"zeros":      func([]byte) []byte { return make([]byte, end) },
		"empty secret": func(said []byte) []byte {
			return secret{}.proof(agentRole, challenge, said[:nonceLen])
		},
		"nothing": func([]byte) []byte { return nil },
	} {
		far := &liar{answer: answer, unread: bytes.Clone(challenge)}
		if name == "replay" {
			far.unread = bytes.Clone(toHost[:nonceLen])
		}
		if err := hostHandshake(far, s); err == nil {
			t.Errorf("to the host, %s: taken", name)
		}
		if len(far.heard) != end {
			t.Errorf("to the host, %s: it said %d bytes", name, len(far.heard))
		}
	}
}

// TestTruncated ends a right handshake after each byte.
func TestTruncated(t *testing.T) {
	s := testSecret(t)
	for cut := range nonceLen + proofLen {
		prove := func(said []byte) []byte {
			nonce := bytes.Repeat([]byte{2}, nonceLen)
			return append(nonce, s.proof(hostRole, said, nonce)...)[:cut]
		}
		if err := agentHandshake(&liar{answer: prove}, s); !cutShort(err) {
			t.Errorf("the agent after %d bytes: %v", cut, err)
		}
		challenge := bytes.Repeat([]byte{1}, nonceLen)
		far := &liar{unread: challenge[:min(cut, nonceLen)], answer: func(said []byte) []byte {
			return s.proof(agentRole, challenge, said[:nonceLen])[:max(0, cut-nonceLen)]
		}}
		if err := hostHandshake(far, s); !cutShort(err) {
			t.Errorf("the host after %d bytes: %v", cut, err)
		}
	}
}

func cutShort(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

func TestSecretIsNotPrinted(t *testing.T) {
	s := testSecret(t)
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, struct{ S secret }{s}); !strings.Contains(text, "(secret)") {
			t.Errorf("%s prints %s", format, text)
		}
	}
}

// FuzzHandshake sends anything to both sides: neither accepts it, nor reads more than a handshake.
func FuzzHandshake(f *testing.F) {
	s := testSecret(f)
	toAgent, toHost, _, _ := shake(s, s)
	f.Add(toAgent)
	f.Add(toHost)
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, side := range map[string]func(io.ReadWriter, secret) error{
			"host": hostHandshake, "agent": agentHandshake,
		} {
			far := &liar{unread: b, answer: func([]byte) []byte { return nil }}
			if err := side(far, s); err == nil {
				t.Errorf("the %s takes %q", name, b)
			}
			if read := len(b) - len(far.unread); read > nonceLen+proofLen {
				t.Errorf("the %s reads %d bytes", name, read)
			}
		}
	})
}
