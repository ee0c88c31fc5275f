"""What tests share: real components, started and taken down by the tests themselves."""
