package consensus

import (
	"fmt"
	"io"
)

// ReadBackup verifies what Backup wrote, and writes the state that is in it to state, beginning before all is verified.
func ReadBackup(in io.Reader, state io.Writer) error {
	if _, err := readBackup(in, state); err != nil {
		return fmt.Errorf("read a backup: %w", err)
	}
	return nil
}
