package guest

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Any user of the host can connect to a guest over vsock, and any user of the guest to its agent
// over vsock_loopback. Each connection therefore begins with three messages of fixed length, and
// nothing else is sent before they are right:
//
//	agent to host: a nonce
//	host to agent: a nonce, proof(hostRole)
//	agent to host: proof(agentRole)
//
// A proof is an HMAC-SHA256 with the secret over the role and both nonces. The host proves itself
// first, so that a stranger gets a random number from the agent and nothing made with the secret.
// The roles differ, so that no proof can be sent back to its sender. The nonces are fresh, so that
// no proof is valid on another connection.
const (
	nonceLen  = 32
	proofLen  = sha256.Size
	hostRole  = "banger vsock 1 host\x00"
	agentRole = "banger vsock 1 agent\x00"
)

// errUnproved ends a connection whose far end does not know the secret.
var errUnproved = errors.New("the far end does not know the secret")

// secret is known to the daemon and to the agent of one guest. It is sent over virtio-serial, which
// only root of the guest opens, and nowhere else.
type secret [32]byte

func newSecret() (s secret, err error) {
	_, err = rand.Read(s[:])
	return s, err
}

// String keeps a secret out of messages.
func (s secret) String() string { return "(secret)" }

// GoString does the same for %#v.
func (s secret) GoString() string { return s.String() }

func (s secret) proof(role string, agentNonce, hostNonce []byte) []byte {
	mac := hmac.New(sha256.New, s[:])
	mac.Write([]byte(role))
	mac.Write(agentNonce)
	mac.Write(hostNonce)
	return mac.Sum(nil)
}

// hostHandshake is the host's side. It reads at most nonceLen+proofLen bytes. The caller bounds its
// time.
func hostHandshake(conn io.ReadWriter, s secret) error {
	agentNonce := make([]byte, nonceLen)
	if _, err := io.ReadFull(conn, agentNonce); err != nil {
		return fmt.Errorf("no challenge came: %w", err)
	}
	hostNonce, err := newNonce()
	if err != nil {
		return err
	}
	answer := slices.Concat(hostNonce, s.proof(hostRole, agentNonce, hostNonce))
	if _, err := conn.Write(answer); err != nil {
		return err
	}
	proof := make([]byte, proofLen)
	if _, err := io.ReadFull(conn, proof); err != nil {
		return fmt.Errorf("no proof came: %w", err)
	}
	if !hmac.Equal(proof, s.proof(agentRole, agentNonce, hostNonce)) {
		return errUnproved
	}
	return nil
}

// agentHandshake is the agent's side. It reads at most nonceLen+proofLen bytes. The caller bounds
// its time.
func agentHandshake(conn io.ReadWriter, s secret) error {
	agentNonce, err := newNonce()
	if err != nil {
		return err
	}
	if _, err := conn.Write(agentNonce); err != nil {
		return err
	}
	answer := make([]byte, nonceLen+proofLen)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	hostNonce, proof := answer[:nonceLen], answer[nonceLen:]
	if !hmac.Equal(proof, s.proof(hostRole, agentNonce, hostNonce)) {
		return errUnproved
	}
	_, err = conn.Write(s.proof(agentRole, agentNonce, hostNonce))
	return err
}

func newNonce() ([]byte, error) {
	nonce := make([]byte, nonceLen)
	_, err := rand.Read(nonce)
	return nonce, err
}
