package keystoretest

import (
	"crypto"
	"os"
	"runtime"

	"github.com/quarklink-go/quarklink/keystore"
)

// checkHandles opens a key many times, and signs now and then, without letting go
// of any signer: nothing tells a store that a signer is done with, so it must not
// hold a handle, a descriptor or a goroutine for each.
func (c *checker) checkHandles(role keystore.Role, ks keystore.KeyStore) {
	const tolerance = 16 // for what goes on elsewhere in the process
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors()
	held := make([]crypto.Signer, 0, handleCalls)
	for i := range handleCalls {
		signer, err := c.signer(c.ctx, ks, role)
		if err != nil {
			c.found("%s: Signer call %d of %d: %w; contract: a signer needs no closing, so it holds no handle", role, i+1, handleCalls, err)
			return
		}
		held = append(held, signer)
		if i%(handleCalls/handleSignings) > 0 {
			continue
		}
		if s, ok := defaultScheme(signer); ok {
			if err := c.signAndVerify(signer, s, freshDigest(s.hash)); err != nil {
				c.found("%s: signing with %v on Signer call %d of %d: %w; contract: a signer needs no closing, so it holds no handle", role, s, i+1, handleCalls, err)
				return
			}
		}
	}
	if more := openDescriptors() - descriptors; more > tolerance {
		c.found("%s: %d Signer calls left %d file descriptors open; contract: a signer needs no closing, so it holds no handle", role, handleCalls, more)
	}
	if now := runtime.NumGoroutine(); now > goroutines+tolerance {
		if more := c.settle(goroutines+tolerance) - goroutines; more > tolerance {
			c.found("%s: %d Signer calls left %d goroutines running; contract: a signer needs no closing, so nothing runs for it", role, handleCalls, more)
		}
	}
	runtime.KeepAlive(held)
}

// checkOpens opens and closes the store many times: a device opens it at each
// start, but a program that restarts its part of the device does so for as long as
// it runs.
func (c *checker) checkOpens() {
	const opens, tolerance = 64, 16
	c.close()
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors()
	for range opens {
		if c.open() == nil {
			return
		}
		c.close()
	}
	if more := openDescriptors() - descriptors; more > tolerance {
		c.found("%d times opened and closed, the store left %d file descriptors open; contract: Close lets go of everything", opens, more)
	}
	if now := runtime.NumGoroutine(); now > goroutines+tolerance {
		if more := c.settle(goroutines+tolerance) - goroutines; more > tolerance {
			c.found("%d times opened and closed, the store left %d goroutines running; contract: Close lets go of everything", opens, more)
		}
	}
}

// openDescriptors counts the process's file descriptors; 0 where the system does
// not tell.
func openDescriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}
